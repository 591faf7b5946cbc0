"""Source prompts: one run for many, rows kept within a budget, and nothing left running for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
import torch

from reft_interventions.errors import InterventionSourceError
from reft_server.engine.types import GenerationRequest, SamplingParams
from reft_server.errors import EngineStepError
from reft_server.sources import SourceCache
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

LAST_TWO = make_set(formula="dii", positions="l2").fold()
FIRST = make_set(formula="dii", positions="f1").fold()
SOURCE = GenerationRequest("source", (7, 8, 9, 10), SamplingParams(max_tokens=1))
ROW_BYTES = 16 * 4


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, timeout=30))


def started(budget_bytes: int = 1 << 20) -> tuple[FakeEngine, SourceCache]:
    engine = FakeEngine()
    engine.start()
    return engine, SourceCache(engine, budget_bytes)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_rows_are_those_of_the_positions() -> None:
    async def scenario() -> None:
        engine, cache = started()
        [rows] = await cache.get(LAST_TWO, SOURCE)
        assert torch.equal(rows, torch.tensor([9.0, 10.0])[:, None].expand(-1, 16))
        [rows] = await cache.get(FIRST, SOURCE)
        assert torch.equal(rows, torch.full((1, 16), 7.0))
        assert engine.submitted[1].prompt_token_ids == (7,)  # what follows has no influence
        await cache.get(FIRST, replace(SOURCE, prompt_token_ids=(7, 3, 3, 3)))
        assert len(engine.submitted) == 2

    run(scenario())


def test_requests_of_one_tenant_share_a_run() -> None:
    async def scenario() -> None:
        engine, cache = started()
        engine.hold_after = 0
        tenants = ["a", "a", "b", "a"]
        waiting = [asyncio.create_task(cache.get(LAST_TWO, replace(SOURCE, tenant=tenant))) for tenant in tenants]
        await settle()
        assert [one.tenant for one in engine.submitted] == ["a", "b"]
        engine.released.set()
        rows = await asyncio.gather(*waiting)
        assert all(torch.equal(one[0], rows[0][0]) for one in rows)
        assert cache.num_bytes == 2 * ROW_BYTES

    run(scenario())


def test_the_last_to_leave_cancels_the_run() -> None:
    async def scenario() -> None:
        engine, cache = started()
        engine.hold_after = 0
        waiting = [asyncio.create_task(cache.get(LAST_TWO, SOURCE)) for _ in range(2)]
        await settle()
        waiting[0].cancel()
        await settle()
        assert not engine.streams[0].is_cancelled
        waiting[1].cancel()
        newcomer = asyncio.create_task(cache.get(LAST_TWO, SOURCE))
        await settle()
        assert engine.streams[0].is_cancelled
        engine.released.set()
        assert len(await newcomer) == 1
        assert len(engine.submitted) == 2

    run(scenario())


def test_a_failed_run_fails_all_who_wait_and_is_tried_again() -> None:
    async def scenario() -> None:
        engine, cache = started()
        engine.fail = EngineStepError("broken")
        results = await asyncio.gather(*(cache.get(LAST_TWO, SOURCE) for _ in range(2)), return_exceptions=True)
        assert [type(one) for one in results] == [EngineStepError] * 2
        engine.fail = None
        assert len(await cache.get(LAST_TWO, SOURCE)) == 1
        assert len(engine.submitted) == 2

    run(scenario())


def test_the_least_recently_used_rows_leave_first() -> None:
    async def scenario() -> None:
        engine, cache = started(budget_bytes=4 * ROW_BYTES)
        one, two, three = (replace(SOURCE, prompt_token_ids=(seed, 1, 2)) for seed in (4, 5, 6))
        for source in (one, two, one, three):  # `two` makes room
            await cache.get(LAST_TWO, source)
        assert cache.num_bytes == 4 * ROW_BYTES
        await cache.get(LAST_TWO, one)
        assert len(engine.submitted) == 3
        await cache.get(LAST_TWO, two)
        assert len(engine.submitted) == 4

    run(scenario())


def test_rows_beyond_the_whole_budget_are_refused() -> None:
    async def scenario() -> None:
        engine, cache = started(budget_bytes=2 * ROW_BYTES - 1)
        with pytest.raises(InterventionSourceError, match="REFT_SOURCE_CACHE_BYTES"):
            await cache.get(LAST_TWO, SOURCE)
        assert not engine.submitted

    run(scenario())


def test_a_source_without_edited_tokens_is_not_run() -> None:
    async def scenario() -> None:
        engine, cache = started()
        folded = make_set(formula="dii", positions=(9,)).fold()
        [rows] = await cache.get(folded, SOURCE)
        assert rows.shape[0] == 0
        assert folded.with_source([rows], "x").open_interventions == ()
        assert not engine.submitted

    run(scenario())
