"""Arrivals, departures, preemption, growth of the KV and cancellations must not change anybody's tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reft_server.engine import GenerationRequest, LocalEngine, SamplingParams
from tests.parity.harness import Case, Comparison, generate, reference, run_together
from tests.parity.test_engine_matches_reference import PATHS, prompt


def varied_cases(model: Any, make_set: Any, num_cases: int, max_tokens: int) -> list[Case]:
    sets = [
        make_set(model, {"positions": "f2+l2"}, seed=1),
        make_set(model, {"positions": "generated", "formula": "direft"}, seed=2),
        make_set(model, {"positions": "all", "component": "mlp_output"}, {"positions": "l1", "layer": 3}, seed=3),
    ]
    return [
        Case(prompt(1 + (7 * i) % 29, i), ((sets[i % 4], 1.0),) if i % 4 < 3 else (), max_tokens - (5 * i) % 13)
        for i in range(num_cases)
    ]


@pytest.mark.parametrize("path", PATHS)
def test_arrivals_and_departures_in_mid_flight_change_nothing(
    path: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    """Each request is sent when the one before it has some tokens; lengths differ, so rows leave at other times."""
    model = tiny_model("llama")
    cases = varied_cases(model, make_set, 12, 20)
    engine = start_engine(model, model_path=path, max_num_batched_tokens=16, max_num_seqs=4)

    async def staggered() -> list[list[int]]:
        tasks = []
        for case in cases:
            tasks.append(asyncio.create_task(generate(engine, case)))
            before = engine.stats().num_steps
            while engine.stats().num_steps < before + 2 and not tasks[-1].done():
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    comparison = Comparison()
    for case, got in zip(cases, asyncio.run(staggered()), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()


@pytest.mark.parametrize("scope", ["shared", "off"])
@pytest.mark.parametrize("path", PATHS)
def test_preemption_and_growth_change_nothing(
    path: str, scope: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    """A KV cache that holds two or three of eight growing sequences: they grow, preempt and are recomputed."""
    model = tiny_model("llama")
    cases = [Case(case.prompt, case.sets, 110 + i) for i, case in enumerate(varied_cases(model, make_set, 8, 10))]
    per_token = 4 * 2 * 2 * 8 * 4  # layers, K and V, KV heads, head size, bytes
    engine: LocalEngine = start_engine(
        model,
        model_path=path,
        kv_cache_bytes=420 * per_token,
        max_num_batched_tokens=24,
        prefix_cache_scope=scope,
    )
    num_preemptions = engine.stats().num_preemptions
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()
    assert engine.stats().num_preemptions > num_preemptions, "nothing was preempted: the cache is too large"


@pytest.mark.parametrize("path", PATHS)
def test_cancellations_leave_neighbours_and_the_cache_alone(
    path: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    model = tiny_model("llama")
    cases = varied_cases(model, make_set, 6, 30)
    engine: LocalEngine = start_engine(model, model_path=path, max_num_batched_tokens=32)

    async def cancel_after_two_tokens(case: Case) -> str | None:
        stream = engine.submit(
            GenerationRequest("gone", case.prompt, SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True))
        )
        async for outputs in stream:
            if outputs[-1].finish_reason is not None:
                return outputs[-1].finish_reason
            stream.cancel()
        return None

    async def together() -> tuple[list[list[int]], list[str | None]]:
        kept = asyncio.gather(*(generate(engine, case) for case in cases))
        gone = asyncio.gather(*(cancel_after_two_tokens(case) for case in cases))
        return await kept, await gone

    outputs, reasons = asyncio.run(together())
    assert reasons == ["cancelled"] * len(cases)
    comparison = Comparison()
    for case, got in zip(cases, outputs, strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()
    stats = engine.stats()
    assert (stats.num_requests_running, stats.num_requests_waiting, stats.kv_cache_usage) == (0, 0, 0.0)
