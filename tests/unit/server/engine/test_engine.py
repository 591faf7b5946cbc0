"""The engine's promises to its callers: validation, refusal, isolation of failures, restart, no endless waits."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from reft_interventions import InterventionPositions
from reft_interventions.errors import InterventionSelfTestError
from reft_interventions.folded import FoldedIntervention, FoldedSet
from reft_interventions.folding import ElementwiseEdit
from reft_server.engine import EngineSettings, GenerationRequest, LocalEngine, SamplingParams, build_engine
from reft_server.engine.batch import Batch
from reft_server.engine.kv_cache import KVCache
from reft_server.errors import (
    EngineDeadError,
    EngineOverloadedError,
    EngineStepError,
    InvalidRequestError,
    PromptTooLongError,
)

MakeEngine = Callable[..., LocalEngine]


@pytest.fixture
def make_engine(tiny_model: Any) -> Iterator[MakeEngine]:
    engines: list[LocalEngine] = []

    def make(arch: str = "llama", **settings: Any) -> LocalEngine:
        options = EngineSettings(**{"kv_cache_bytes": 1 << 24, **settings})
        engines.append(build_engine(copy.deepcopy(tiny_model(arch)), "tiny", options))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.stop())


def request(*token_ids: int, interventions: tuple[FoldedSet, ...] = (), **sampling: Any) -> GenerationRequest:
    params = SamplingParams(**{"max_tokens": 6, "temperature": 0.0, "ignore_eos": True, **sampling})
    return GenerationRequest("test", tuple(token_ids), params, interventions)


async def collect(engine: LocalEngine, one: GenerationRequest) -> list[int]:
    token_ids: list[int] = []
    async for outputs in engine.submit(one):
        token_ids += [output.token_id for output in outputs if output.token_id is not None]
    return token_ids


def poisoned_set(value: float) -> FoldedSet:
    edit = ElementwiseEdit(None, torch.full((32,), value))
    return FoldedSet("poison", (FoldedIntervention(1, "block_output", InterventionPositions("all"), edit),))


@pytest.mark.parametrize(
    ("bad", "error", "param"),
    [
        (request(), InvalidRequestError, "prompt"),
        (request(1, 128), InvalidRequestError, "prompt"),
        (request(-1), InvalidRequestError, "prompt"),
        (request(1, max_tokens=0), InvalidRequestError, "max_tokens"),
        (request(1, temperature=-0.1), InvalidRequestError, "temperature"),
        (request(1, temperature=float("nan")), InvalidRequestError, "temperature"),
        (request(1, top_p=0.0), InvalidRequestError, "top_p"),
        (request(1, top_p=1.5), InvalidRequestError, "top_p"),
        (request(1, top_k=129), InvalidRequestError, "top_k"),
        (request(1, num_prompt_logprobs=21), InvalidRequestError, "logprobs"),
        (request(1, max_tokens=-1, num_prompt_logprobs=1), InvalidRequestError, "max_tokens"),
        (request(1, min_p=1.1), InvalidRequestError, "min_p"),
        (request(1, max_tokens=3, min_tokens=4), InvalidRequestError, "min_tokens"),
        (request(1, presence_penalty=float("nan")), InvalidRequestError, "presence_penalty"),
        (request(1, frequency_penalty=float("inf")), InvalidRequestError, "frequency_penalty"),
        (request(1, repetition_penalty=0.0), InvalidRequestError, "repetition_penalty"),
        (request(1, logit_bias=((128, 1.0),)), InvalidRequestError, "logit_bias"),
        (request(1, logit_bias=((1, float("nan")),)), InvalidRequestError, "logit_bias"),
        (request(1, num_logprobs=21), InvalidRequestError, "logprobs"),
        (request(1, stop_token_ids=frozenset({128})), InvalidRequestError, "stop_token_ids"),
        (request(*[1] * 250, max_tokens=7), PromptTooLongError, "max_tokens"),
        (request(*[1] * 300), PromptTooLongError, "prompt"),
    ],
)
def test_engine_refuses_a_bad_request_while_its_neighbour_finishes(
    bad: GenerationRequest, error: type[Exception], param: str, make_engine: MakeEngine
) -> None:
    engine = make_engine()

    async def run() -> tuple[list[int], list[int]]:
        alone = await collect(engine, request(5, 6, 7))
        neighbour = asyncio.create_task(collect(engine, request(5, 6, 7)))
        await asyncio.sleep(0)
        with pytest.raises(error) as caught:
            engine.submit(bad)
        assert caught.value.param == param  # type: ignore[attr-defined]
        return alone, await neighbour

    alone, neighbour = asyncio.run(run())
    assert alone == neighbour
    assert len(alone) == 6


def test_engine_refuses_what_can_never_fit_its_kv_cache(make_engine: MakeEngine) -> None:
    engine = make_engine(kv_cache_bytes=100 * 512)  # 512 bytes of K and V per token

    async def run() -> None:
        assert len(await collect(engine, request(*[1] * 90))) == 6
        with pytest.raises(PromptTooLongError, match="KV cache"):
            engine.submit(request(*[1] * 120))

    asyncio.run(run())


def test_engine_refuses_early_when_its_queue_is_full(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1, max_queue_len=2)

    async def run() -> tuple[int, int]:
        num_refused, tasks, waits = 0, [], []
        for _ in range(40):
            try:
                stream = engine.submit(request(1, 2, max_tokens=50))
            except EngineOverloadedError as error:
                num_refused += 1
                waits.append(error.retry_after_s)
            else:
                tasks.append(asyncio.create_task(_drain(stream)))
        assert min(waits) > 0
        return num_refused, len(await asyncio.gather(*tasks))

    num_refused, num_served = asyncio.run(run())
    assert num_refused > 0
    assert num_refused + num_served == 40


async def _drain(stream: Any) -> int:
    return sum([len(outputs) async for outputs in stream])


def test_engine_gives_up_on_requests_that_wait_too_long(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1, max_queue_time_s=0.0)

    async def run() -> None:
        first = asyncio.create_task(collect(engine, request(1, 2, max_tokens=200)))
        while not engine.stats().num_requests_running and not first.done():
            await asyncio.sleep(0)
        with pytest.raises(EngineOverloadedError, match="waited"):
            await collect(engine, request(1, 2))
        first.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_poisoned_set_fails_its_own_request_alone(value: float, make_engine: MakeEngine) -> None:
    """And leaves nothing: no block that another request could start from, no number in its slot."""
    engine = make_engine()

    async def run() -> tuple[list[int], list[int]]:
        alone = await collect(engine, request(5, 6, 7))
        num_blocks = engine._prefix_cache.num_blocks
        neighbour = asyncio.create_task(collect(engine, request(5, 6, 7)))
        with pytest.raises(EngineStepError, match="not finite"):
            await collect(engine, request(5, 6, 7, interventions=(poisoned_set(value),)))
        answer = await neighbour
        assert engine._prefix_cache.num_blocks == num_blocks
        assert not engine._steps.take_failed(), "each failure has one trial of the model"
        return alone, answer

    alone, neighbour = asyncio.run(run())
    assert alone == neighbour
    assert isinstance(engine.kv_cache, KVCache)
    assert all(bool(stack.isfinite().all()) for slab in engine.kv_cache._slabs for stack in slab.stacks)


def test_prompt_and_generated_tokens_are_counted_as_such(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert len(asyncio.run(collect(engine, request(5, 6, 7)))) == 6
    stats = engine.stats()
    assert (stats.num_prompt_tokens, stats.num_generated_tokens, stats.num_steps) == (3, 6, 6)


@pytest.mark.parametrize("max_tokens", [0, 3])
def test_poisoned_prompt_logprobs_fail_where_the_tokens_after_are_sound(
    max_tokens: int, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    edit = ElementwiseEdit(None, torch.full((32,), float("inf")))
    first_row = FoldedSet("first", (FoldedIntervention(3, "block_output", InterventionPositions("f1"), edit),))
    one = request(5, 6, 7, interventions=(first_row,), max_tokens=max_tokens, num_prompt_logprobs=0)
    with pytest.raises(EngineStepError, match="not finite"):
        asyncio.run(collect(engine, one))
    assert asyncio.run(collect(engine, request(5, 6, 7, interventions=(first_row,))))


def test_edit_that_raises_fails_its_own_request_alone(make_engine: MakeEngine) -> None:
    engine = make_engine()
    wrong_size = ElementwiseEdit(None, torch.ones(31))
    broken = FoldedSet("broken", (FoldedIntervention(1, "block_output", InterventionPositions("all"), wrong_size),))

    async def run() -> tuple[list[int], list[int]]:
        alone = await collect(engine, request(5, 6, 7))
        neighbour = asyncio.create_task(collect(engine, request(5, 6, 7)))
        with pytest.raises(EngineStepError):
            await collect(engine, request(5, 6, 7, interventions=(broken,)))
        return alone, await neighbour

    alone, neighbour = asyncio.run(run())
    assert alone == neighbour
    assert engine.stats().kv_cache_usage == 0


def test_crashed_engine_fails_what_is_in_flight_and_serves_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    async def run() -> None:
        before = await collect(engine, request(5, 6, 7))
        real, num_calls = engine._scheduler.schedule, 0

        def crash_once() -> Any:
            nonlocal num_calls
            num_calls += 1
            if num_calls == 3:
                raise MemoryError("planted")
            return real()

        monkeypatch.setattr(engine._scheduler, "schedule", crash_once)
        with pytest.raises(EngineDeadError, match="restarted"):
            await collect(engine, request(5, 6, 7, max_tokens=50))
        assert await collect(engine, request(5, 6, 7)) == before

    asyncio.run(run())
    assert engine.stats().num_restarts == 1
    assert engine.is_ready


def test_out_of_memory_in_a_large_step_fails_nobody(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that can't get its memory for a whole batch is repeated request by request."""
    engine = make_engine()
    real = engine._model.forward

    def forward(batch: Batch) -> Any:
        if len(batch.sampled_sequences) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return real(batch)

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7))
        monkeypatch.setattr(engine._model, "forward", forward)
        assert await asyncio.gather(*(collect(engine, request(5, 6, 7)) for _ in range(4))) == [alone] * 4

    asyncio.run(run())
    assert engine.stats().num_restarts == 0


def test_out_of_memory_in_the_kv_cache_restarts_the_engine(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7))
        with monkeypatch.context() as patch:
            patch.setattr(engine._kv_cache, "allocate", lambda _: torch.zeros(1 << 60))
            with pytest.raises(EngineDeadError, match="restarted"):
                await collect(engine, request(*range(1, 70)))
        assert await collect(engine, request(5, 6, 7)) == alone

    asyncio.run(run())
    assert engine.stats().num_restarts == 1
    assert engine.stats().kv_cache_usage == 0


def test_hanging_step_fails_its_clients_and_is_not_ready_until_it_ends(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(max_step_time_s=0.2)
    goes_on = threading.Event()
    real = engine._model.forward

    def hang(batch: Batch) -> Any:
        goes_on.wait(60)
        return real(batch)

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7))
        with monkeypatch.context() as patch:
            patch.setattr(engine._model, "forward", hang)
            requests = [asyncio.create_task(collect(engine, request(5, 6, i))) for i in range(3)]
            await asyncio.sleep(0)
            test = asyncio.create_task(engine.self_test(poisoned_set(1.0)))
            results = await asyncio.gather(*requests, test, return_exceptions=True)
            assert [type(result) for result in results] == [EngineDeadError] * 4
            assert not engine.is_ready
            with pytest.raises(EngineDeadError):
                engine.submit(request(1))
        goes_on.set()
        while not engine.is_ready or engine.stats().num_requests_running:
            await asyncio.sleep(0.01)
        assert await collect(engine, request(5, 6, 7)) == alone

    asyncio.run(run())
    assert engine.stats().kv_cache_usage == 0
    assert "in hang" in caplog.text, "the log must show where the thread is"


def test_engine_is_not_ready_while_it_restarts(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    seen: list[bool] = []
    reset = engine._reset

    def reset_watched() -> None:
        seen.append(engine.is_ready)
        reset()

    def crash() -> None:
        monkeypatch.undo()
        monkeypatch.setattr(engine, "_reset", reset_watched)
        raise RuntimeError("crash")

    async def run() -> None:
        monkeypatch.setattr(engine._scheduler, "schedule", crash)
        with pytest.raises(EngineDeadError):
            await collect(engine, request(5))

    asyncio.run(run())
    assert seen == [False]
    assert engine.is_ready


def raise_in_forward(_batch: Batch) -> Any:
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def not_finite_in_forward(batch: Batch) -> Any:
    return torch.full((len(batch.sampled_sequences), 128), torch.nan)


@pytest.mark.parametrize("broken", [raise_in_forward, not_finite_in_forward])
def test_engine_whose_model_fails_at_everything_is_not_ready_until_it_runs_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, broken: Callable[[Batch], Any]
) -> None:
    monkeypatch.setattr("reft_server.engine.engine._FIRST_TRIAL_AFTER_S", 0.001)
    engine = make_engine()

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.001)

    async def run() -> None:
        before = await collect(engine, request(5, 6, 7))
        with monkeypatch.context() as patch:
            patch.setattr(engine._model, "forward", broken)
            with pytest.raises((EngineStepError, EngineDeadError)):
                await collect(engine, request(5, 6, 7))
            await until(lambda: not engine.is_ready)
            assert not engine.is_broken
            patch.setattr("reft_server.engine.engine._BROKEN_AFTER_S", 0.0)
            await until(lambda: engine.is_broken)
            with pytest.raises(EngineDeadError):
                await collect(engine, request(5, 6, 7))
        await until(lambda: engine.is_ready)
        assert not engine.is_broken
        assert await collect(engine, request(5, 6, 7)) == before

    asyncio.run(run())
    assert engine.stats().num_restarts == 1


def test_request_that_fails_alone_again_and_again_restarts_nothing(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    real = engine._model.forward

    def forward(batch: Batch) -> Any:
        if batch.token_ids == [9]:
            raise RuntimeError("planted")
        return real(batch)

    async def run() -> None:
        monkeypatch.setattr(engine._model, "forward", forward)
        for _ in range(5):
            with pytest.raises(EngineStepError):
                await collect(engine, request(9))
            assert engine.is_ready

    asyncio.run(run())
    assert engine.stats().num_restarts == 0


def test_engine_whose_model_does_not_run_stops_at_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reft_server.engine.engine._FIRST_TRIAL_AFTER_S", 3600.0)
    engine = make_engine()

    async def run() -> None:
        monkeypatch.setattr(engine._model, "forward", raise_in_forward)
        monkeypatch.setattr(engine._kv_cache, "allocate", lambda _: torch.zeros(1 << 60))
        results = await asyncio.gather(
            collect(engine, request(5)), engine.self_test(poisoned_set(1.0)), return_exceptions=True
        )
        assert all(isinstance(result, EngineDeadError | RuntimeError) for result in results)
        await engine.stop()

    asyncio.run(run())


def test_stopped_engine_fails_waiting_requests_and_refuses_new_ones(make_engine: MakeEngine) -> None:
    engine = make_engine(max_num_seqs=1)

    async def run() -> None:
        tasks = [asyncio.create_task(collect(engine, request(1, 2, max_tokens=250))) for _ in range(3)]
        await asyncio.sleep(0)
        await engine.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert any(isinstance(result, EngineDeadError) for result in results)
        assert all(isinstance(result, EngineDeadError | list) for result in results)
        with pytest.raises(EngineDeadError):
            engine.submit(request(1))
        with pytest.raises(EngineDeadError):
            await engine.self_test(poisoned_set(1.0))

    asyncio.run(run())
    assert not engine.is_ready


def test_eos_and_stop_tokens_end_a_sequence_unless_ignored(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def run() -> None:
        free = await collect(engine, request(5, 6, 7, max_tokens=10))
        stop = next(token for token in free if free.index(token) > 0)
        stopped = await collect(engine, request(5, 6, 7, max_tokens=10, stop_token_ids=frozenset({stop})))
        assert stopped == free[: free.index(stop) + 1]

    asyncio.run(run())


def test_seeded_sampling_repeats_whatever_the_company(make_engine: MakeEngine) -> None:
    engine = make_engine()
    seeded = request(5, 6, 7, temperature=1.3, top_p=0.9, top_k=40, seed=7, max_tokens=20)

    async def run() -> None:
        alone = await collect(engine, seeded)
        company = [request(9, i, temperature=1.0, max_tokens=20) for i in range(5)]
        together = await asyncio.gather(collect(engine, seeded), *(collect(engine, other) for other in company))
        assert together[0] == alone
        other_seed = request(5, 6, 7, temperature=1.3, top_p=0.9, top_k=40, seed=8, max_tokens=20)
        assert await collect(engine, other_seed) != alone

    asyncio.run(run())


def test_logprobs_are_those_of_the_plain_model(make_engine: MakeEngine, tiny_model: Any) -> None:
    engine = make_engine()

    async def run() -> list[Any]:
        outputs = []
        async for step in engine.submit(request(5, 6, 7, num_logprobs=3, temperature=0.7, seed=1)):
            outputs += step
        return outputs

    outputs = asyncio.run(run())
    token_ids = [5, 6, 7]
    for output in outputs:
        expected = tiny_model("llama")(torch.tensor([token_ids])).logits[0, -1].log_softmax(-1)
        top = expected.topk(3)
        assert output.logprob == pytest.approx(expected[output.token_id].item(), abs=1e-3)
        assert [token for token, _ in output.top_logprobs] == top.indices.tolist()
        assert [value for _, value in output.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-3)
        token_ids.append(output.token_id)


@pytest.mark.parametrize("model_path", ["packed", "generic"])
def test_self_test_reports_the_edited_rows(
    model_path: str, make_engine: MakeEngine, tiny_model: Any, make_set: Any
) -> None:
    engine = make_engine(model_path=model_path)
    tested = make_set(
        tiny_model("llama"),
        {"positions": "f3+l2"},
        {"positions": "generated", "layer": 2},
        {"positions": (40, -2), "layer": 3},
    )
    report = asyncio.run(engine.self_test(tested.fold()))
    assert {(site.layer, site.num_edited_rows) for site in report.sites} == {(1, 5), (2, 2), (3, 2)}
    assert all(site.delta_norm > 0 and site.residual_norm > 0 for site in report.sites)


@pytest.mark.parametrize(("value", "reason"), [(0.0, "changes nothing"), (float("nan"), "NaN"), (1e38, "overflows")])
def test_self_test_fails_a_set_without_effect_or_with_too_much(
    value: float, reason: str, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    with pytest.raises(InterventionSelfTestError, match=reason):
        asyncio.run(engine.self_test(poisoned_set(value)))


def test_decode_step_of_a_prompt_only_set_plans_no_edit(
    make_engine: MakeEngine, tiny_model: Any, make_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    sites_by_step: list[tuple[int, int]] = []
    real = engine._model.forward

    def spy(batch: Batch) -> Any:
        sites_by_step.append((batch.num_tokens, len(batch.edits.sites)))
        return real(batch)

    monkeypatch.setattr(engine._model, "forward", spy)
    folded = make_set(tiny_model("llama"), {"positions": "f2+l2"}).fold()
    asyncio.run(collect(engine, request(1, 2, 3, 4, 5, interventions=(folded,))))
    assert sites_by_step == [(5, 1)] + [(1, 0)] * 5
