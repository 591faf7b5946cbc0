"""The pool: one load for many waiters, a byte budget, and errors and cancellations that stay where they belong."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable

import pytest

from reft_interventions.errors import StoreError
from reft_interventions.folded import FoldedSet
from reft_server.engine.pool import InterventionPool, PoolStats
from tests.intervention_sets import make_set

FOLDED = [make_set(seed).fold() for seed in range(4)]
SET_BYTES = FOLDED[0].num_bytes
ROOMY = 1 << 20


class Loader:
    """Counts its calls, and waits for `gate` in the worker thread."""

    def __init__(self, folded: FoldedSet, *, is_open: bool = True) -> None:
        self.folded = folded
        self.num_calls = 0
        self.threads: set[int] = set()
        self.gate = threading.Event()
        if is_open:
            self.gate.set()

    def __call__(self) -> FoldedSet:
        self.num_calls += 1
        self.threads.add(threading.get_ident())
        assert self.gate.wait(timeout=30)
        return self.folded


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def never() -> FoldedSet:
    raise AssertionError("the set was resident: nothing should be loaded")


def test_pool_loads_once_and_then_answers_from_memory() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        loader = Loader(FOLDED[0])
        assert await pool.get("a", loader) is FOLDED[0]
        assert await pool.get("a", never) is FOLDED[0]
        assert loader.num_calls == 1
        assert threading.get_ident() not in loader.threads
        assert pool.stats() == PoolStats(1, SET_BYTES, num_hits=1, num_misses=1)
        assert "a" in pool
        assert "b" not in pool
        await pool.close()

    asyncio.run(scenario())


def test_pool_loads_once_for_many_waiters_and_the_loop_stays_free() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        loader = Loader(FOLDED[0], is_open=False)
        waiters = [asyncio.create_task(pool.get("a", loader)) for _ in range(20)]
        await until(lambda: loader.num_calls > 0)
        # The load is stuck, yet the loop serves another set.
        assert await pool.get("b", Loader(FOLDED[1])) is FOLDED[1]
        assert not any(waiter.done() for waiter in waiters)
        loader.gate.set()
        assert all(folded is FOLDED[0] for folded in await asyncio.gather(*waiters))
        assert loader.num_calls == 1
        await pool.close()

    asyncio.run(scenario())


def test_pool_failed_load_fails_its_waiters_only_and_is_tried_again() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        gate = threading.Event()

        def fail() -> FoldedSet:
            assert gate.wait(timeout=30)
            raise StoreError("rotten")

        waiters = [asyncio.create_task(pool.get("a", fail)) for _ in range(3)]
        other = asyncio.create_task(pool.get("b", Loader(FOLDED[1])))
        assert await other is FOLDED[1]
        gate.set()
        results = await asyncio.gather(*waiters, return_exceptions=True)
        assert [type(result) for result in results] == [StoreError] * 3
        assert "a" not in pool
        assert await pool.get("a", Loader(FOLDED[0])) is FOLDED[0]
        await pool.close()

    asyncio.run(scenario())


def test_pool_cancelled_waiter_leaves_the_others_waiting() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        loader = Loader(FOLDED[0], is_open=False)
        first, second = (asyncio.create_task(pool.get("a", loader)) for _ in range(2))
        await until(lambda: loader.num_calls > 0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        loader.gate.set()
        assert await second is FOLDED[0]
        assert loader.num_calls == 1
        await pool.close()

    asyncio.run(scenario())


def test_pool_load_finishes_when_every_waiter_was_cancelled() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        loader = Loader(FOLDED[0], is_open=False)
        waiter = asyncio.create_task(pool.get("a", loader))
        await until(lambda: loader.num_calls > 0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        loader.gate.set()
        await until(lambda: "a" in pool)
        assert await pool.get("a", never) is FOLDED[0]
        await pool.close()

    asyncio.run(scenario())


def test_pool_error_that_nobody_waits_for_is_not_reported_as_lost() -> None:
    async def scenario() -> None:
        reported: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
        pool = InterventionPool(ROOMY)
        gate, started = threading.Event(), threading.Event()

        def fail() -> FoldedSet:
            started.set()
            assert gate.wait(timeout=30)
            raise StoreError("rotten")

        waiter = asyncio.create_task(pool.get("a", fail))
        await until(started.is_set)
        waiter.cancel()
        gate.set()
        await pool.close()
        gc.collect()
        assert reported == []

    asyncio.run(scenario())


def test_pool_evicts_the_least_recently_used_set() -> None:
    async def scenario() -> None:
        pool = InterventionPool(SET_BYTES * 2 * 5 // 4 + 4)  # room for two; a fifth is kept for scaled copies
        for key, folded in zip("ab", FOLDED, strict=False):
            await pool.get(key, Loader(folded))
        await pool.get("a", never)
        await pool.get("c", Loader(FOLDED[2]))
        assert ["a" in pool, "b" in pool, "c" in pool] == [True, False, True]
        stats = pool.stats()
        assert (stats.num_sets, stats.num_bytes, stats.num_evictions) == (2, 2 * SET_BYTES, 1)
        await pool.close()

    asyncio.run(scenario())


def test_pool_eviction_frees_a_set_only_when_no_request_holds_it() -> None:
    async def scenario() -> None:
        pool = InterventionPool(SET_BYTES * 5 // 4 + 4)
        in_flight = await pool.get("a", lambda: make_set(7).fold())
        watched = weakref.ref(in_flight)
        await pool.get("b", Loader(FOLDED[1]))
        assert "a" not in pool
        gc.collect()
        assert watched() is in_flight
        del in_flight
        gc.collect()
        assert watched() is None
        await pool.close()

    asyncio.run(scenario())


def test_pool_finds_an_evicted_set_again_while_a_request_holds_it() -> None:
    async def scenario() -> None:
        pool = InterventionPool(SET_BYTES * 5 // 4 + 4)
        in_flight = await pool.get("a", lambda: make_set(7).fold())
        await pool.get("b", Loader(FOLDED[1]))
        assert "a" not in pool
        assert await pool.get("a", never) is in_flight
        assert pool.stats().num_bytes <= SET_BYTES * 5 // 4
        await pool.get("b", never)
        pool.discard("a")
        loader = Loader(FOLDED[0])
        assert await pool.get("a", loader) is FOLDED[0]
        await pool.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("budget_bytes", [0, SET_BYTES - 1])
def test_pool_hands_out_a_set_larger_than_its_budget_without_keeping_it(budget_bytes: int) -> None:
    async def scenario() -> None:
        pool = InterventionPool(budget_bytes)
        for num_calls in (1, 2):
            loader = Loader(FOLDED[0])
            assert await pool.get("a", loader) is FOLDED[0]
            assert loader.num_calls == 1
            assert pool.stats() == PoolStats(num_misses=num_calls)
        await pool.close()

    asyncio.run(scenario())


def test_pool_thrash_stays_within_the_budget_and_serves_the_right_set() -> None:
    async def scenario() -> None:
        pool = InterventionPool(SET_BYTES * 2 * 5 // 4 + 4)

        async def use(key: int) -> None:
            for _ in range(20):
                assert await pool.get(str(key), Loader(FOLDED[key])) is FOLDED[key]
                assert pool.stats().num_bytes <= 2 * SET_BYTES

        await asyncio.gather(*(use(key) for key in range(4)))
        await pool.close()

    asyncio.run(scenario())


def test_pool_scaled_copies_are_made_once_and_share_the_loaded_set() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        loader = Loader(FOLDED[0])
        doubled, halved, plain = await asyncio.gather(
            pool.get("a", loader, 2.0), pool.get("a", loader, 0.5), pool.get("a", loader)
        )
        assert loader.num_calls == 1
        assert doubled.content_hash == FOLDED[0].scaled(2.0).content_hash
        assert halved.content_hash == FOLDED[0].scaled(0.5).content_hash
        assert plain is FOLDED[0]
        assert await pool.get("a", never, 2.0) is doubled
        await pool.close()

    asyncio.run(scenario())


def test_pool_scales_chosen_by_clients_never_evict_a_set() -> None:
    async def scenario() -> None:
        pool = InterventionPool(10 * SET_BYTES)
        for key in range(4):
            await pool.get(str(key), Loader(FOLDED[key]))
        for number in range(50):
            await pool.get("0", never, 1.5 + number)
        assert all(str(key) in pool for key in range(4))
        assert pool.stats().num_bytes <= 10 * SET_BYTES
        await pool.close()

    asyncio.run(scenario())


def test_pool_discard_forgets_a_set_and_its_scaled_copies() -> None:
    async def scenario() -> None:
        pool = InterventionPool(ROOMY)
        pool.add("a", FOLDED[0])
        pool.add("b", FOLDED[1])
        await pool.get("a", never, 2.0)
        pool.discard("a")
        pool.discard("a")
        assert pool.stats().num_bytes == SET_BYTES
        loader = Loader(FOLDED[0])
        await pool.get("a", loader, 2.0)
        assert loader.num_calls == 1
        await pool.close()

    asyncio.run(scenario())


def test_pool_add_twice_counts_the_bytes_once() -> None:
    pool = InterventionPool(ROOMY)
    pool.add("a", FOLDED[0])
    pool.add("a", FOLDED[0])
    assert pool.stats() == PoolStats(1, SET_BYTES)
    asyncio.run(pool.close())
