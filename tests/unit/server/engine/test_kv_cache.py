"""The KV cache never exceeds its budget, hands out each row once, and moves a sequence's content when it grows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reft_server.engine.kv_cache import KVCache
from reft_server.engine.kv_memory import KVLayout

LAYOUT = KVLayout(((2, 4, 4), (1, 4, 2)), torch.float32, torch.device("cpu"))


def cache(budget_tokens: int, max_rows: int = 4, max_tokens: int = 500) -> KVCache:
    return KVCache(
        LAYOUT, budget_bytes=budget_tokens * LAYOUT.bytes_per_token, max_rows=max_rows, max_tokens=max_tokens
    )


def test_layout_counts_keys_and_values_of_every_layer() -> None:
    assert LAYOUT.bytes_per_token == (2 * 8 + 1 * 6) * 4


@given(st.integers(64, 2000), st.lists(st.tuples(st.booleans(), st.integers(1, 500), st.integers(0, 50)), max_size=60))
def test_cache_stays_within_its_budget_and_never_shares_a_row(
    budget_tokens: int, actions: list[tuple[bool, int, int]]
) -> None:
    kv_cache = cache(budget_tokens)
    live = []
    for is_allocation, num_tokens, index in actions:
        if is_allocation or not live:
            slot = kv_cache.allocate(num_tokens)
            if slot is not None:
                assert slot.capacity >= num_tokens
                live.append(slot)
        else:
            kv_cache.free(live.pop(index % len(live)))
        assert kv_cache.num_bytes <= kv_cache.budget_bytes
        assert len({(id(slot.slab), slot.row) for slot in live}) == len(live)
    for slot in live:
        kv_cache.free(slot)
    assert kv_cache.usage == 0


@pytest.mark.parametrize("num_tokens", [1, 64, 65, 128, 190, 500])
def test_empty_cache_has_room_for_whatever_can_ever_fit(num_tokens: int) -> None:
    kv_cache = cache(200)
    for other in (kv_cache.allocate(60), kv_cache.allocate(60)):
        assert other is not None
        kv_cache.free(other)
    assert (kv_cache.allocate(num_tokens) is not None) == kv_cache.can_ever_fit(num_tokens)


def test_freeing_twice_is_refused() -> None:
    kv_cache = cache(1000)
    slot = kv_cache.allocate(10)
    assert slot is not None
    kv_cache.free(slot)
    with pytest.raises(RuntimeError, match="twice"):
        kv_cache.free(slot)


def test_growing_moves_what_was_filled() -> None:
    kv_cache = cache(2000)
    slot = kv_cache.allocate(64)
    assert slot is not None
    kept = torch.randn(2, 50, 4)
    slot.slab.keys[0][slot.row, :, :50] = kept
    larger = kv_cache.grow(slot, 65, 50)
    assert larger is not None
    assert larger.capacity >= 65
    assert torch.equal(larger.slab.keys[0][larger.row, :, :50], kept)
    assert slot.is_free


def test_new_memory_is_finite() -> None:
    slot = cache(1000).allocate(64)
    assert slot is not None
    assert all(bool((tensor == 0).all()) for tensor in (*slot.slab.keys, *slot.slab.values))
