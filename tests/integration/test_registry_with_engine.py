"""The registry over the real engine: a set without effect is refused, and one under load is replaced without a slip."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from reft_interventions import FileLimits, InterventionSet, base_model_spec, save
from reft_interventions.errors import InterventionNotFoundError, InterventionSelfTestError
from reft_interventions.store import InterventionStore
from reft_server.engine import EngineSettings, build_engine
from reft_server.engine.pool import InterventionPool
from reft_server.engine.types import Engine, GenerationRequest, SamplingParams
from reft_server.registry import Registry, ResolvedIntervention

PROMPT = (3, 14, 15, 92, 65, 35, 89, 79)
NUM_TOKENS = 12


def run(root: Path, model: PreTrainedModel, scenario: Callable[[Registry, Engine], Awaitable[None]]) -> None:
    async def with_registry() -> None:
        base = base_model_spec(model, "tiny")
        # A copy: the engine packs the weights of the model that it is given.
        engine = build_engine(copy.deepcopy(model), "tiny", EngineSettings(kv_cache_bytes=1 << 22, num_threads=1))
        engine.start()
        registry = Registry(InterventionStore(root), InterventionPool(1 << 20), engine, base, FileLimits())
        try:
            await scenario(registry, engine)
        finally:
            await engine.stop()
            await registry.close()

    asyncio.run(with_registry())


async def add(registry: Registry, intervention_set: InterventionSet) -> str:
    path = registry.new_upload_path()
    save(intervention_set, path)
    stored, report = await registry.add(path, "haiku")
    assert all(site.delta_norm > 0 for site in report.sites)
    return stored.content_hash


async def generate(engine: Engine, request_id: str, resolved: ResolvedIntervention) -> tuple[int | None, ...]:
    sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
    stream = engine.submit(GenerationRequest(request_id, PROMPT, sampling, (resolved.folded,)))
    return tuple([output.token_id async for outputs in stream for output in outputs])


def test_add_refuses_a_set_that_changes_nothing(
    tmp_path: Path, tiny_model: Callable[..., PreTrainedModel], make_set: Callable[..., InterventionSet]
) -> None:
    model = tiny_model("llama")
    random = make_set(model, {"formula": "addition"})
    without_effect = InterventionSet.create(random.manifest, [{"vector": torch.zeros(32)}])

    async def scenario(registry: Registry, engine: Engine) -> None:
        with pytest.raises(InterventionSelfTestError):
            await add(registry, without_effect)
        with pytest.raises(InterventionNotFoundError):
            await registry.resolve("haiku")
        assert registry.stats().pool.num_sets == 0
        await add(registry, random)
        assert registry.get("haiku").version == 1

    run(tmp_path, model, scenario)


def test_replacing_a_set_under_load_never_mixes_versions(
    tmp_path: Path, tiny_model: Callable[..., PreTrainedModel], make_set: Callable[..., InterventionSet]
) -> None:
    model = tiny_model("llama")
    sets = [make_set(model, {"positions": "f2+l2"}, seed=seed, strength=2.0) for seed in range(4)]

    async def scenario(registry: Registry, engine: Engine) -> None:
        alone: dict[str, tuple[int | None, ...]] = {}
        for number, intervention_set in enumerate(sets):
            content_hash = await add(registry, intervention_set)
            alone[content_hash] = await generate(engine, f"alone-{number}", await registry.resolve("haiku"))
        assert len(set(alone.values())) == len(sets), "the sets must be told apart by their tokens"
        answered: list[str] = []
        is_over = asyncio.Event()

        async def client(number: int) -> None:
            turn = 0
            while not is_over.is_set():
                resolved = await registry.resolve("haiku")
                tokens = await generate(engine, f"{number}-{turn}", resolved)
                assert tokens == alone[resolved.content_hash], f"wrong answer under {resolved.name}@{resolved.version}"
                answered.append(resolved.content_hash)
                turn += 1

        clients = [asyncio.create_task(client(number)) for number in range(6)]
        for turn in range(8):
            if turn == 5:
                await registry.delete("haiku", 1)
            num_before = len(answered)
            await add(registry, sets[turn % len(sets)])
            while len(answered) < num_before + 6 and not any(task.done() for task in clients):
                await asyncio.sleep(0.005)
        is_over.set()
        await asyncio.gather(*clients)
        assert set(answered) == set(alone)
        assert registry.get("haiku").version == 4 + 8

    run(tmp_path, model, scenario)
