"""The device's pool: a strict byte budget, copies pinned by being held, and requests that wait their turn for room.

The device is `meta`, which copies shapes without data, so that a copy can't be taken for its original.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import torch

from reft_interventions.folded import FoldedEdit, FoldedSet
from reft_server.engine.device_pool import DevicePool, DevicePoolStats
from reft_server.errors import EngineOverloadedError, InvalidRequestError
from tests.intervention_sets import make_set

SETS = [make_set(seed).fold() for seed in range(5)]
SET_BYTES = SETS[0].num_bytes


def make_pool(num_sets: float, max_wait_s: float = 30.0) -> DevicePool:
    return DevicePool(torch.device("meta"), int(num_sets * SET_BYTES), max_wait_s)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, timeout=30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


async def settle() -> None:
    """Let every callback that is due run."""
    gc.collect()
    for _ in range(10):
        await asyncio.sleep(0)


def weights(edit: FoldedEdit) -> list[torch.Tensor]:
    return [value for value in vars(edit).values() if torch.is_tensor(value)]


def devices(folded: FoldedSet) -> set[str]:
    return {str(value.device) for i in folded.interventions for value in weights(i.edit)}


def test_place_copies_once_and_keeps_content_and_order() -> None:
    async def scenario() -> None:
        pool = make_pool(3)
        placed = await pool.place([SETS[1], SETS[0], SETS[1]])
        assert [one.content_hash for one in placed] == [SETS[i].content_hash for i in (1, 0, 1)]
        assert {device for one in placed for device in devices(one)} == {"meta"}
        [again] = await pool.place([SETS[0]])
        assert again.interventions is placed[1].interventions
        assert pool.stats() == DevicePoolStats(num_sets=2, num_bytes=2 * SET_BYTES, num_pinned=2, num_evictions=0)

    run(scenario())


def test_place_of_no_sets_is_nothing() -> None:
    async def scenario() -> None:
        assert await make_pool(0).place([]) == ()

    run(scenario())


def test_copies_that_nothing_holds_stay_until_room_is_needed_oldest_use_first() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        for index in (0, 1, 0):
            await pool.place([SETS[index]])
        await settle()
        assert pool.stats() == DevicePoolStats(2, 2 * SET_BYTES, 0, 0)
        held = await pool.place([SETS[2]])
        assert pool.stats() == DevicePoolStats(2, 2 * SET_BYTES, 1, 1)
        kept = await pool.place([SETS[0]])
        assert pool.stats().num_evictions == 1
        assert held
        assert kept

    run(scenario())


def test_pinned_copies_are_never_evicted_and_the_next_request_waits_for_one_to_end() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        first, second = await pool.place([SETS[0]]), await pool.place([SETS[1]])
        waiting = asyncio.create_task(pool.place([SETS[2]]))
        await settle()
        assert not waiting.done()
        assert pool.stats() == DevicePoolStats(2, 2 * SET_BYTES, 2, 0)
        # What is there already needs no room.
        assert [one.content_hash for one in await pool.place([SETS[0], SETS[1]])] == [
            one.content_hash for one in (*first, *second)
        ]
        del first
        gc.collect()
        [third] = await waiting
        assert third.content_hash == SETS[2].content_hash
        assert pool.stats() == DevicePoolStats(2, 2 * SET_BYTES, 2, 1)
        assert second

    run(scenario())


def test_idle_copy_that_a_request_needs_makes_no_room_for_its_other_sets() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        pinned = await pool.place([SETS[0]])
        await pool.place([SETS[1]])
        await settle()
        assert pool.stats().num_pinned == 1
        waiting = asyncio.create_task(pool.place([SETS[1], SETS[2]]))
        await settle()
        assert not waiting.done()
        del pinned
        gc.collect()
        assert [one.content_hash for one in await waiting] == [SETS[i].content_hash for i in (1, 2)]
        assert pool.stats() == DevicePoolStats(2, 2 * SET_BYTES, 2, 1)

    run(scenario())


def test_copy_is_unpinned_wherever_its_last_holder_ends() -> None:
    async def scenario() -> None:
        pool = make_pool(1)
        held = [await pool.place([SETS[0]])]
        waiting = asyncio.create_task(pool.place([SETS[1]]))
        await settle()
        engine = threading.Thread(target=held.clear)
        engine.start()
        assert [one.content_hash for one in await waiting] == [SETS[1].content_hash]
        engine.join()

    run(scenario())


def test_waiting_requests_get_room_in_the_order_of_their_arrival() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        first, second = await pool.place([SETS[0]]), await pool.place([SETS[1]])
        large = asyncio.create_task(pool.place([SETS[2], SETS[3]]))
        await settle()
        small = asyncio.create_task(pool.place([SETS[4]]))
        del first
        await settle()
        assert not large.done()
        assert not small.done()
        del second
        gc.collect()
        placed = await large
        await settle()
        assert not small.done()
        large.cancel()
        del placed, large
        gc.collect()
        assert [one.content_hash for one in await small] == [SETS[4].content_hash]

    run(scenario())


def test_place_refuses_what_can_never_fit() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        with pytest.raises(InvalidRequestError, match="intervention-device-bytes") as caught:
            await pool.place(SETS[:3])
        assert caught.value.param == "intervention"
        assert pool.stats() == DevicePoolStats(0, 0, 0, 0)

    run(scenario())


def test_wait_for_room_ends_with_a_typed_error_and_leaves_the_turn_to_others() -> None:
    async def scenario() -> None:
        pool = make_pool(1, max_wait_s=0.02)
        held = await pool.place([SETS[0]])
        with pytest.raises(EngineOverloadedError):
            await pool.place([SETS[1]])
        del held
        await settle()
        assert len(await pool.place([SETS[1]])) == 1

    run(scenario())


class Stuck(FoldedSet):
    """A set whose copy waits for `gate`, and then fails if it is told to."""

    gate: threading.Event
    failure: Exception | None

    def packed(self, *, is_pinned: bool = False) -> FoldedSet:
        assert self.gate.wait(timeout=30)
        if self.failure is not None:
            raise self.failure
        return super().packed(is_pinned=is_pinned)


def stuck(one: FoldedSet, failure: Exception | None = None) -> Stuck:
    made = Stuck(one.content_hash, one.interventions)
    object.__setattr__(made, "gate", threading.Event())
    object.__setattr__(made, "failure", failure)
    return made


def test_cancelled_request_leaves_the_copy_to_the_others_and_holds_nothing() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        slow = stuck(SETS[0])
        first, second = (asyncio.create_task(pool.place([slow])) for _ in range(2))
        await settle()
        assert pool.stats().num_pinned == 1
        first.cancel()
        await settle()
        assert len(await pool.place([SETS[1]])) == 1  # the loop is free meanwhile
        slow.gate.set()
        placed = await second
        assert devices(placed[0]) == {"meta"}
        del placed, second
        await until(lambda: pool.stats().num_pinned == 0)

    run(scenario())


def test_failed_copy_fails_its_requests_only_frees_its_room_and_is_tried_again() -> None:
    async def scenario() -> None:
        pool = make_pool(2)
        broken = stuck(SETS[0], RuntimeError("out of memory"))
        requests = [asyncio.create_task(pool.place([broken, SETS[1]])) for _ in range(2)]
        await settle()
        broken.gate.set()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(result) for result in results] == [RuntimeError] * 2
        await until(lambda: pool.stats().num_pinned == 0)  # the other set's copy may go on behind the failed one
        assert pool.stats() == DevicePoolStats(1, SET_BYTES, 0, 0)
        assert len(await pool.place([SETS[0], SETS[1]])) == 2

    run(scenario())


def test_place_under_load_never_exceeds_the_budget_and_ends_with_nothing_pinned() -> None:
    async def scenario() -> None:
        pool = make_pool(2.5)

        async def request(first: int, second: int) -> None:
            for _ in range(20):
                placed = await pool.place([SETS[first], SETS[second]])
                assert [one.content_hash for one in placed] == [SETS[i].content_hash for i in (first, second)]
                assert pool.stats().num_bytes <= 2.5 * SET_BYTES
                await asyncio.sleep(0)

        await asyncio.gather(*(request(i % 5, (i * 3 + 1) % 5) for i in range(10)))
        await until(lambda: pool.stats().num_pinned == 0)
        assert pool.stats().num_evictions > 0

    run(scenario())


class OneByOne:
    """A device whose copies are counted."""

    is_pinned = False

    def __init__(self) -> None:
        self.sources: list[torch.Tensor] = []

    def copy(self, source: torch.Tensor) -> torch.Tensor:
        self.sources.append(source)
        return source.to("meta")


def test_set_goes_to_the_device_as_one_copy_of_the_buffer_that_it_was_staged_in() -> None:
    async def scenario() -> None:
        stream = OneByOne()
        pool = DevicePool(torch.device("meta"), 4 * SET_BYTES, 30.0, stream)
        staged = pool.stage(SETS[0])
        assert pool.stage(staged) is staged
        placed, other = await pool.place([staged, SETS[1]])
        assert len(stream.sources) == 2
        assert any(source is staged.buffer for source in stream.sources)
        for one in (placed, other):
            assert one.buffer is not None
            storages = {tensor.untyped_storage()._cdata for i in one.interventions for tensor in weights(i.edit)}
            assert storages == {one.buffer.untyped_storage()._cdata}

    run(scenario())


class NothingPinned(FoldedSet):
    """A set on a host without page-locked memory."""

    def packed(self, *, is_pinned: bool = False) -> FoldedSet:
        if is_pinned:
            raise RuntimeError("CUDA error: out of memory")
        return super().packed()


def test_set_is_staged_in_plain_memory_where_no_page_locked_is_left(caplog: pytest.LogCaptureFixture) -> None:
    stream = OneByOne()
    stream.is_pinned = True
    pool = DevicePool(torch.device("meta"), SET_BYTES, 30.0, stream)
    staged = pool.stage(NothingPinned(SETS[0].content_hash, SETS[0].interventions))
    assert staged.buffer is not None
    assert "no page-locked memory left" in caplog.text


def test_thousands_of_sets_stay_within_the_budget_and_leave_in_the_order_of_their_last_use() -> None:
    async def scenario() -> None:
        pool = make_pool(500)
        sets = [replace(SETS[0], content_hash=f"{number}") for number in range(1500)]
        held = [await pool.place([one]) for one in sets[:10]]
        for one in sets[10:]:
            await pool.place([one])
            assert pool.stats().num_bytes <= 500 * SET_BYTES
        await until(lambda: pool.stats().num_pinned == 10)
        assert pool.stats() == DevicePoolStats(500, 500 * SET_BYTES, 10, 1000)
        await pool.place([*sets[:10], *sets[1010:]])  # those that are held and the newest are still there
        assert pool.stats().num_evictions == 1000
        del held
        await until(lambda: pool.stats().num_pinned == 0)

    run(scenario())
