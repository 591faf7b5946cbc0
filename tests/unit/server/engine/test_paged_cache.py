"""Pages: never two owners, never more than the budgets, and blocks that change hands instead of being copied."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reft_server.engine.kv_memory import KVLayout
from reft_server.engine.paged_cache import PagedKVCache, PagedSlot

LAYOUT = KVLayout(((2, 4, 4), (2, 4, 4)), torch.float32, torch.device("cpu"), is_paged=True)
PAGE_BYTES = LAYOUT.bytes_per_token * 16


def cache(num_pages: int, num_prefix_pages: int = 0) -> PagedKVCache:
    return PagedKVCache(
        LAYOUT, budget_bytes=num_pages * PAGE_BYTES, max_tokens=500, prefix_bytes=num_prefix_pages * PAGE_BYTES
    )


def allocate(kv_cache: PagedKVCache, num_tokens: int) -> PagedSlot:
    slot = kv_cache.allocate(num_tokens)
    assert slot is not None
    return slot


@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.sampled_from("agfkld"), st.integers(1, 90), st.integers(0, 50)), max_size=60),
)
def test_no_page_ever_has_two_owners(num_prefix_pages: int, actions: list[tuple[str, int, int]]) -> None:
    """Random allocations, growth, frees, kept blocks, borrowed blocks and dropped ones."""
    kv_cache = cache(12, num_prefix_pages)
    memory = kv_cache.block_memory(num_prefix_pages * PAGE_BYTES)
    live: list[PagedSlot] = []
    kept: list[int] = []
    for action, num_tokens, number in actions:
        slot = live[number % len(live)] if live else None
        if action == "a" and (made := kv_cache.allocate(num_tokens)) is not None:
            assert made.capacity >= num_tokens
            live.append(made)
        elif action == "g" and slot is not None:
            kv_cache.grow(slot, slot.capacity + num_tokens, 0)
        elif action == "f" and slot is not None:
            live.remove(slot)
            kv_cache.free(slot)
        elif action == "k" and slot is not None and (own := set(range(len(slot.pages))) - slot.borrowed):
            place = memory.keep(slot, min(own) * 16, 16)
            kept += [] if place is None else [place]
        elif action == "l" and slot is not None and kept and 0 not in slot.borrowed:
            memory.load(kept[number % len(kept)], slot, 0, 16)
        elif action == "d" and kept:
            place = kept[number % len(kept)]
            if all(place not in one.pages for one in live):  # others are pinned by the prefix cache
                kept.remove(place)
                memory.drop(place)
        own_pages = [page for one in live for i, page in enumerate(one.pages) if i not in one.borrowed]
        everything = own_pages + kept + kv_cache.free_pages
        assert sorted(everything) == list(range(kv_cache.pool.num_pages))
        assert kv_cache.num_bytes == len(own_pages) * PAGE_BYTES <= kv_cache.budget_bytes
        assert memory.num_bytes == len(kept) * PAGE_BYTES <= num_prefix_pages * PAGE_BYTES


def test_a_borrowed_block_is_the_same_memory_and_a_part_of_one_a_copy() -> None:
    kv_cache = cache(8, 2)
    memory = kv_cache.block_memory(2 * PAGE_BYTES)
    first = allocate(kv_cache, 32)
    for stack in kv_cache.pool.stacks:
        stack[:, first.pages[0]] = 1.0
        stack[:, first.pages[1]] = 2.0
    places = [memory.keep(first, 0, 16), memory.keep(first, 16, 16)]
    kv_cache.free(first)
    second = allocate(kv_cache, 32)
    memory.load(places[0], second, 0, 16)
    memory.load(places[1], second, 16, 5)
    assert second.pages[0] == places[0]
    assert second.pages[1] != places[1]
    keys = kv_cache.pool.keys[0]
    assert bool((keys[second.pages[0]] == 1.0).all())
    assert bool((keys[second.pages[1], :, :5] == 2.0).all())
    kv_cache.free(second)
    assert kv_cache.usage == 0
    assert memory.keep(allocate(kv_cache, 16), 0, 16) is None  # the budget of kept pages is used up


def test_scrubbing_leaves_borrowed_pages_alone() -> None:
    kv_cache = cache(4, 1)
    memory = kv_cache.block_memory(PAGE_BYTES)
    slot = allocate(kv_cache, 32)
    for stack in kv_cache.pool.stacks:
        stack[:, slot.pages] = 3.0
    kept = memory.keep(slot, 0, 16)
    own = slot.pages[1]
    kv_cache.free(slot, scrub=True)
    assert bool((kv_cache.pool.keys[1][kept] == 3.0).all())
    assert bool((kv_cache.pool.keys[1][own] == 0.0).all())


def test_freeing_twice_is_refused() -> None:
    kv_cache = cache(4)
    slot = allocate(kv_cache, 10)
    kv_cache.free(slot)
    with pytest.raises(RuntimeError, match="twice"):
        kv_cache.free(slot)


def test_a_cache_that_starts_over_takes_the_memory_of_the_one_before() -> None:
    old = cache(4)
    allocate(old, 40)
    new = PagedKVCache(LAYOUT, budget_bytes=old.budget_bytes, max_tokens=500, previous=old)
    assert new.pool is old.pool
    assert new.usage == 0
