"""Folded intervention sets in host memory: loaded once, shared by every request, least recently used out first."""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakValueDictionary

from reft_interventions.folded import FoldedSet

_NUM_LOADERS = 2
_VARIANT_SHARE = 5
"""One part in so many of the budget holds variants: scales and subspaces, which clients choose, never evict sets."""


@dataclass(frozen=True)
class PoolStats:
    """Gauges of what is resident, and counters since start; variants included."""

    num_sets: int = 0
    num_bytes: int = 0
    num_hits: int = 0
    num_misses: int = 0
    num_evictions: int = 0


class InterventionPool:
    """An LRU of folded sets by content hash, for one event loop; loading runs in threads of its own.

    The pool only forgets: a request that holds a set keeps it alive after its eviction, and while it does, others find
    it without loading it again.

    Args:
        budget_bytes: of weights; a set larger than its share is handed out but not kept.
    """

    def __init__(self, budget_bytes: int) -> None:
        variant_bytes = budget_bytes // _VARIANT_SHARE
        self._sets = _LeastRecentlyUsed(budget_bytes - variant_bytes)
        self._variants = _LeastRecentlyUsed(variant_bytes)
        self._loading: dict[Hashable, asyncio.Task[FoldedSet]] = {}
        self._executor = ThreadPoolExecutor(_NUM_LOADERS, thread_name_prefix="intervention-load")
        self._num_hits = 0
        self._num_misses = 0

    def __contains__(self, content_hash: str) -> bool:
        """Whether the set is resident; does not count as a use."""
        return content_hash in self._sets

    async def get(
        self,
        content_hash: str,
        load: Callable[[], FoldedSet],
        scale: float = 1.0,
        subspaces: tuple[int, ...] | None = None,
    ) -> FoldedSet:
        """The set with this content hash, or a variant of it.

        Args:
            content_hash: of the stored file, computed by the server.
            load: reads and folds it; called in a worker thread, once for all who wait for it.
            scale: multiplies its deltas.
            subspaces: the rank dimensions that act; None = all.

        Raises:
            InterventionSubspaceError: the set does not have these rank dimensions.
            Whatever `load` raises, to all who wait; the next call tries again.
        """
        if scale == 1.0 and subspaces is None:
            return await self._get(self._sets, content_hash, functools.partial(self._in_thread, load))

        async def produce() -> FoldedSet:
            folded = await self.get(content_hash, load)
            return await self._in_thread(lambda: folded.restricted(subspaces).scaled(scale))

        return await self._get(self._variants, (content_hash, scale, subspaces), produce)

    def add(self, content_hash: str, folded: FoldedSet) -> None:
        """Make a set resident that the caller has already folded."""
        self._sets.add(content_hash, folded)

    def discard(self, content_hash: str) -> None:
        """Forget a set and its variants; nothing happens when they are not resident."""
        self._sets.discard(lambda key: key == content_hash)
        self._variants.discard(lambda key: isinstance(key, tuple) and key[0] == content_hash)

    def stats(self) -> PoolStats:
        """What is resident, and how often it was asked for."""
        return PoolStats(
            num_sets=len(self._sets),
            num_bytes=self._sets.num_bytes + self._variants.num_bytes,
            num_hits=self._num_hits,
            num_misses=self._num_misses,
            num_evictions=self._sets.num_evictions + self._variants.num_evictions,
        )

    async def close(self) -> None:
        """Wait for the loads that run, and end the worker threads."""
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        self._executor.shutdown(wait=True)

    async def _get(
        self, cache: _LeastRecentlyUsed, key: Hashable, produce: Callable[[], Awaitable[FoldedSet]]
    ) -> FoldedSet:
        cached = cache.get(key)
        if cached is not None:
            self._num_hits += 1
            return cached
        task = self._loading.get(key)
        if task is None:
            self._num_misses += 1
            task = asyncio.get_running_loop().create_task(self._produce(cache, key, produce))
            self._loading[key] = task
            # When every waiter was cancelled, nobody else looks at the error.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
        # shield: a cancelled waiter leaves, the load goes on for the others.
        return await asyncio.shield(task)

    async def _produce(
        self, cache: _LeastRecentlyUsed, key: Hashable, produce: Callable[[], Awaitable[FoldedSet]]
    ) -> FoldedSet:
        try:
            folded = await produce()
            cache.add(key, folded)
            return folded
        finally:
            del self._loading[key]

    def _in_thread(self, function: Callable[[], FoldedSet]) -> asyncio.Future[FoldedSet]:
        return asyncio.get_running_loop().run_in_executor(self._executor, function)


class _LeastRecentlyUsed:
    """A cache of folded sets under a byte budget. A set that a request still holds is found after its eviction too."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._entries: OrderedDict[Hashable, FoldedSet] = OrderedDict()
        self._evicted: WeakValueDictionary[Hashable, FoldedSet] = WeakValueDictionary()
        self.num_bytes = 0
        self.num_evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._entries

    def get(self, key: Hashable) -> FoldedSet | None:
        folded = self._entries.get(key)
        if folded is not None:
            self._entries.move_to_end(key)
            return folded
        folded = self._evicted.get(key)
        if folded is not None:
            self.add(key, folded)
        return folded

    def add(self, key: Hashable, folded: FoldedSet) -> None:
        """Keep a set, evicting the least recently used; one larger than the whole budget evicts nothing."""
        self._remove(key)
        if folded.num_bytes > self._budget_bytes:
            return
        self._entries[key] = folded
        self.num_bytes += folded.num_bytes
        while self.num_bytes > self._budget_bytes:
            oldest, evicted = next(iter(self._entries.items()))
            self._remove(oldest)
            self._evicted[oldest] = evicted
            self.num_evictions += 1

    def discard(self, is_doomed: Callable[[Hashable], bool]) -> None:
        for key in [key for key in (*self._entries, *self._evicted) if is_doomed(key)]:
            self._remove(key)

    def _remove(self, key: Hashable) -> None:
        self._evicted.pop(key, None)
        folded = self._entries.pop(key, None)
        if folded is not None:
            self.num_bytes -= folded.num_bytes
