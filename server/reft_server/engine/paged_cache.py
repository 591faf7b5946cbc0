"""KV cache of pages: what a GPU's kernels read through block tables. A page is a block of the prefix cache.

A sequence's pages lie anywhere in one pool, which is as large as the budgets of running sequences and of the prefix
cache together. A page has one owner, its sequence or the prefix cache; a sequence that starts from cached blocks
borrows their pages, and a block that is kept changes its owner: neither copies anything. Cached blocks that a running
sequence goes on from are pinned by the prefix cache, so a borrowed page is never given to another.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from functools import cached_property

from .kv_cache import KVCache
from .kv_memory import BLOCK_SIZE, KVAllocator, KVLayout, KVSlot
from .memory import lazy_zeros

_serial_numbers = itertools.count()


class PagePool:
    """Memory of `num_pages` pages of `BLOCK_SIZE` tokens: `[num_pages, num_kv_heads, BLOCK_SIZE, dim]` a layer.

    `keys` and `values` are views into `stacks`, which hold all tensors of one shape.
    """

    def __init__(self, layout: KVLayout, num_pages: int) -> None:
        self.num_pages = num_pages
        self.stacks = [
            lazy_zeros((count, num_pages, heads, BLOCK_SIZE, dim), layout.dtype, layout.device)
            for (heads, dim), count in layout.stack_shapes
        ]
        self.keys, self.values = layout.unstack(self.stacks)


class PagedSlot(KVSlot):
    """The pages of one sequence, in order. `borrowed`: indices of those that the prefix cache owns."""

    def __init__(self, pool: PagePool, pages: list[int]) -> None:
        self.pool = pool
        self.pages = pages
        self.borrowed: set[int] = set()
        self._number = next(_serial_numbers)

    @property
    def capacity(self) -> int:
        return len(self.pages) * BLOCK_SIZE

    def place(self, position: int) -> int:
        """Where a token's K and V are: page * BLOCK_SIZE + offset."""
        return self.pages[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE

    @cached_property
    def order(self) -> tuple[int, int]:
        return id(self.pool), self._number


class PagedKVCache:
    """Hands out pages; running sequences own no more than `budget_bytes`, the prefix cache no more than its own.

    Args:
        layout: shape of one token.
        budget_bytes: of sequences.
        max_tokens: the longest sequence.
        prefix_bytes: of kept blocks, besides.
        previous: a cache of the same sizes that nothing uses any more: its memory is taken over.
    """

    def __init__(
        self,
        layout: KVLayout,
        *,
        budget_bytes: int,
        max_tokens: int,
        prefix_bytes: int = 0,
        previous: KVAllocator | None = None,
    ) -> None:
        self.layout = layout
        self.budget_bytes = budget_bytes
        self._max_tokens = max_tokens
        self._page_bytes = layout.bytes_per_token * BLOCK_SIZE
        self._max_pages = budget_bytes // self._page_bytes
        num_pages = self._max_pages + prefix_bytes // self._page_bytes
        self.pool: PagePool = previous.pool if isinstance(previous, PagedKVCache) else PagePool(layout, num_pages)
        self.free_pages = list(range(num_pages - 1, -1, -1))
        self.num_owned = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of the pages that sequences own."""
        return self.num_owned * self._page_bytes

    @property
    def usage(self) -> float:
        """Share of the budget that live sequences own, 0 to 1."""
        return self.num_owned / self._max_pages if self._max_pages else 0.0

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether an otherwise empty cache has room for a sequence of `num_tokens`."""
        return num_tokens <= self._max_tokens and _num_pages(num_tokens) <= self._max_pages

    def allocate(self, num_tokens: int) -> PagedSlot | None:
        """A slot for at least `num_tokens` tokens, or None when the budget is used up."""
        pages = self._take(_num_pages(num_tokens))
        return None if pages is None else PagedSlot(self.pool, pages)

    def allocate_single(self, num_tokens: int) -> PagedSlot | None:
        """The same: any slot may have any length."""
        return self.allocate(num_tokens)

    def grow(self, slot: KVSlot, num_tokens: int, num_filled: int) -> PagedSlot | None:  # noqa: ARG002
        """Add pages to a slot, up to `num_tokens` tokens; None when there is no room. What is filled stays."""
        assert isinstance(slot, PagedSlot)  # one of this cache's own
        pages = self._take(_num_pages(num_tokens) - len(slot.pages))
        if pages is None:
            return None
        slot.pages += pages
        return slot

    def free(self, slot: KVSlot, *, scrub: bool = False) -> None:
        """Give a slot's own pages back. Freeing twice is a bug of the caller.

        Args:
            scrub: overwrite them with zeros. Kernels leave masked positions out, so this is for good measure.
        """
        assert isinstance(slot, PagedSlot)  # one of this cache's own
        if slot.is_free:
            raise RuntimeError("a KV slot was freed twice")
        slot.is_free = True
        own = [page for index, page in enumerate(slot.pages) if index not in slot.borrowed]
        if scrub:
            for stack in self.pool.stacks:
                stack[:, own] = 0
        self.free_pages += reversed(own)
        self.num_owned -= len(own)

    def block_memory(self, budget_bytes: int) -> KeptPages:
        """Pages that change their owner instead of being copied."""
        return KeptPages(self, budget_bytes // self._page_bytes, self._page_bytes)

    def _take(self, num_pages: int) -> list[int] | None:
        if self.num_owned + num_pages > self._max_pages:
            return None
        self.num_owned += num_pages
        return [self.free_pages.pop() for _ in range(num_pages)]


class KeptPages:
    """`BlockMemory` within the pool of a paged cache."""

    def __init__(self, cache: PagedKVCache, max_pages: int, page_bytes: int) -> None:
        self._cache = cache
        self._max_pages = max_pages
        self._page_bytes = page_bytes
        self._num_kept = 0

    @property
    def num_bytes(self) -> int:
        return self._num_kept * self._page_bytes

    def keep(self, slot: KVSlot, index: int, count: int) -> int | None:  # noqa: ARG002
        assert isinstance(slot, PagedSlot)  # of the cache that made this memory
        if self._num_kept >= self._max_pages:
            return None
        number = index // BLOCK_SIZE
        if number in slot.borrowed:
            raise RuntimeError("a page of the prefix cache was kept twice")
        slot.borrowed.add(number)
        self._num_kept += 1
        self._cache.num_owned -= 1
        return slot.pages[number]

    def load(self, place: Hashable, slot: KVSlot, index: int, count: int) -> None:
        """Borrow a whole block's page; copy the start of one, because the sequence goes on within it."""
        assert isinstance(place, int)  # made by `keep`
        assert isinstance(slot, PagedSlot)  # of the cache that made this memory
        number = index // BLOCK_SIZE
        if count < BLOCK_SIZE:
            for stack in slot.pool.stacks:
                stack[:, slot.pages[number], :, :count] = stack[:, place, :, :count]
            return
        self._cache.free_pages.append(slot.pages[number])
        self._cache.num_owned -= 1
        slot.pages[number] = place
        slot.borrowed.add(number)

    def drop(self, place: Hashable) -> None:
        assert isinstance(place, int)  # made by `keep`
        self._num_kept -= 1
        self._cache.free_pages.append(place)


def make_kv_cache(
    layout: KVLayout,
    *,
    budget_bytes: int,
    max_rows: int,
    max_tokens: int,
    prefix_bytes: int = 0,
    previous: KVAllocator | None = None,
) -> KVAllocator:
    """The kind of cache that a model path's layout asks for. `previous` is the one that this one replaces."""
    if layout.is_paged:
        return PagedKVCache(
            layout, budget_bytes=budget_bytes, max_tokens=max_tokens, prefix_bytes=prefix_bytes, previous=previous
        )
    return KVCache(layout, budget_bytes=budget_bytes, max_rows=max_rows, max_tokens=max_tokens)


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // BLOCK_SIZE)
