"""Who gets which K and V, and that all of it comes back."""

from __future__ import annotations

import torch

from reft_server.engine.kv_cache import KVCache
from reft_server.engine.kv_memory import BLOCK_SIZE, KVLayout
from reft_server.engine.placement import Placement
from reft_server.engine.prefix_cache import PrefixCache
from reft_server.engine.sequence import Sequence
from tests.unit.server.engine.test_scheduler import make, request, step

LAYOUT = KVLayout(((1, 2, 2),) * 2, torch.float32, torch.device("cpu"))


def make_placement(kv_tokens: int, max_tokens: int = 4096) -> tuple[Placement, KVCache, PrefixCache]:
    per_token = LAYOUT.bytes_per_token
    kv_cache = KVCache(LAYOUT, budget_bytes=kv_tokens * per_token, max_rows=1, max_tokens=max_tokens)
    prefix_cache = PrefixCache(kv_cache.block_memory(10_000 * per_token))
    return Placement(kv_cache, prefix_cache, shares_prefixes=True), kv_cache, prefix_cache


def compute(placement: Placement, sequence: Sequence) -> None:
    """Pretend that the model ran the prompt: K of a token is its position."""
    assert sequence.slot is not None
    first = sequence.num_shared_tokens
    for stack in sequence.slot.slab.stacks:  # type: ignore[attr-defined]
        rest = torch.arange(sequence.num_computed_tokens, sequence.prompt_length, dtype=torch.float32)
        place = slice(sequence.num_computed_tokens - first, sequence.prompt_length - first)
        stack[:, sequence.slot.row, :, place] = rest[:, None]  # type: ignore[attr-defined]
    sequence.num_computed_tokens = sequence.prompt_length
    placement.keep_prompt(sequence)


def positions_in(sequence: Sequence, num_tokens: int) -> list[int]:
    """What a sequence's first tokens have for K, its shared prefix first."""
    assert sequence.slot is not None
    num_shared = sequence.num_shared_tokens
    found: list[int] = []
    if sequence.shared_prefix is not None:
        slot = sequence.shared_prefix.slot
        found += slot.slab.stacks[0][0, slot.row, 0, :num_shared, 0].int().tolist()  # type: ignore[attr-defined]
    own = sequence.slot.slab.stacks[0][0, sequence.slot.row, 0, : num_tokens - num_shared, 0]  # type: ignore[attr-defined]
    return found + [int(one) for one in own]


def test_users_of_a_shared_prefix_hold_it_once_and_the_last_one_frees_it() -> None:
    placement, kv_cache, prefix_cache = make_placement(10_000)
    first, *users = (request(320, max_tokens=4) for _ in range(4))
    assert placement.place(first)
    compute(placement, first)
    placement.release(first)
    assert kv_cache.usage == 0
    for user in users:
        assert placement.place(user)
        assert user.num_cached_tokens == 319
        assert user.num_shared_tokens == 304
        assert positions_in(user, 319) == list(range(319))
        compute(placement, user)
        assert positions_in(user, 320) == list(range(320))
    prefixes = [user.shared_prefix for user in users]
    assert len({one.slot for one in prefixes if one is not None}) == 1
    shared = kv_cache.usage
    for user in users:
        placement.release(user)
        assert user.num_computed_tokens == 0
        assert user.shared_prefix is None
    assert 0 == kv_cache.usage < shared
    assert prefix_cache.num_blocks == 20
    assert not any(block.num_users for block in prefix_cache._recency)


def test_shorter_start_of_a_shared_prefix_is_shared_up_to_there() -> None:
    placement, kv_cache, _ = make_placement(10_000)
    long, short = request(640, max_tokens=4), request(300, max_tokens=4)
    first = request(640, max_tokens=4)
    assert placement.place(first)
    compute(placement, first)
    placement.release(first)
    assert placement.place(long)
    assert placement.place(short)
    assert long.shared_prefix is not None
    assert short.shared_prefix is not None
    assert (long.num_shared_tokens, short.num_shared_tokens) == (624, 288)
    assert short.shared_prefix.slot is long.shared_prefix.slot
    placement.release(long)
    assert positions_in(short, 299) == list(range(299)), "its prefix is held although the longer one left"
    placement.release(short)
    assert kv_cache.usage == 0


def test_prefix_is_copied_where_sharing_it_leaves_no_room() -> None:
    placement, kv_cache, _ = make_placement(360, max_tokens=330)
    first, second = request(320, max_tokens=4), request(320, max_tokens=4)
    assert placement.place(first)
    compute(placement, first)
    assert not placement.place(second)
    assert second.shared_prefix is None
    placement.release(first)
    assert placement.place(second)
    assert second.shared_prefix is None
    assert positions_in(second, 319) == list(range(319))
    placement.release(second)
    assert kv_cache.usage == 0


def test_growth_keeps_what_follows_a_shared_prefix() -> None:
    placement, kv_cache, _ = make_placement(10_000)
    first, second = request(320, max_tokens=4), request(320, max_tokens=300)
    assert placement.place(first)
    compute(placement, first)
    placement.release(first)
    assert placement.place(second)
    compute(placement, second)
    assert second.slot is not None
    before = second.slot.capacity
    second.token_ids += [7] * (before + BLOCK_SIZE)
    assert placement.grow(second)
    assert second.slot.capacity >= len(second.token_ids) - second.num_shared_tokens > before
    assert second.slot.capacity <= 320 - second.num_shared_tokens + 300, "no more than it can ever need"
    assert positions_in(second, 320) == list(range(320))
    placement.release(second)
    assert kv_cache.usage == 0


def test_nothing_of_a_failed_sequence_is_kept() -> None:
    placement, kv_cache, prefix_cache = make_placement(10_000)
    sequence = request(40, max_tokens=4)
    assert placement.place(sequence)
    slot = sequence.slot
    assert slot is not None
    compute(placement, sequence)
    sequence.token_ids += [7] * 20
    sequence.num_computed_tokens += 20
    placement.release(sequence, is_sound=False, with_tail=True)
    assert prefix_cache.num_blocks == 2, "the prompt's, from before"
    assert not any(stack[:, slot.row].any() for stack in slot.slab.stacks)  # type: ignore[attr-defined]
    assert kv_cache.usage == 0


def test_follower_does_not_wait_for_little_more_than_is_cached() -> None:
    scheduler = make(prefix_tokens=4000, max_num_batched_tokens=100)
    leader, follower = request(530, max_tokens=400), request(531)
    scheduler.add(leader)
    scheduler.add(follower)
    for _ in range(6):
        step(scheduler)
    assert follower.num_cached_tokens in range(496, 512), "32 more would have come a step later"


def test_follower_does_not_wait_for_what_was_computed_and_not_kept() -> None:
    scheduler = make(prefix_tokens=2 * BLOCK_SIZE, max_num_batched_tokens=100)
    leader = request(2000)
    scheduler.add(leader)
    step(scheduler)
    step(scheduler)
    follower = request(160, priority=-1)
    scheduler.add(follower)
    assert follower in [chunk.sequence for chunk in step(scheduler)]


def test_tokens_from_the_cache_are_counted_at_the_first_admission_only() -> None:
    placement, _, _ = make_placement(10_000)
    sequence = request(40, max_tokens=4)
    assert placement.place(sequence)
    compute(placement, sequence)
    placement.release(sequence)
    assert placement.place(sequence)
    assert sequence.num_computed_tokens == 32
    assert sequence.num_cached_tokens == 0


def test_follower_with_another_salt_waits_for_nobody() -> None:
    scheduler = make(prefix_tokens=4000, max_num_batched_tokens=100)
    scheduler.add(request(590, max_tokens=400))
    follower = request(590, cache_salt="pepper")
    scheduler.add(follower)
    for _ in range(6):
        step(scheduler)
    assert (follower.num_computed_tokens, follower.num_cached_tokens) == (10, 0)
