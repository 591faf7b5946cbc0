"""Prefix reuse: blocks of K and V that any later request may start from, whatever intervention it uses.

What a token's K and V depend on is the tokens up to it and the edits at positions up to it, nothing else. So a block is
found by the chain of its ancestors and by its own content: token ids, and which edits touch which of its positions.
Blocks before a request's first edit carry no edit and are shared with the base model and every other intervention.
Contents are compared in full, never by hash alone: two blocks can't be mistaken for each other.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from itertools import islice

from .kv_memory import BLOCK_SIZE, BlockMemory, KVSlot
from .sequence import BlockContent, Sequence

_MAX_SIBLINGS = 64  # blocks compared for a partial match; the newest ones where there are more


@dataclass(eq=False)
class Block:
    """K and V of up to `BLOCK_SIZE` tokens, or the root of a tree of them, which has none.

    `num_users` counts the sequences whose next block will hang below this one: it and its ancestors stay.
    """

    content: BlockContent
    parent: Block | None
    place: Hashable | None = None
    children: dict[BlockContent, Block] = field(default_factory=dict)
    num_users: int = 0


@dataclass(frozen=True)
class PrefixMatch:
    """The longest cached start of a sequence: whole blocks, then `num_partial_tokens` of `partial`."""

    root: Hashable
    blocks: tuple[Block, ...]
    partial: Block | None = None
    num_partial_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.blocks) * BLOCK_SIZE + self.num_partial_tokens


class PrefixCache:
    """A tree of blocks per salt, least recently used leaves out first. Used by the engine's thread only.

    Args:
        memory: where the blocks' K and V are.
        is_shared: False keeps the blocks of each combination of interventions apart from the first one on, as servers
            do that key their cache by adapter; for comparison.
    """

    def __init__(self, memory: BlockMemory, *, is_shared: bool = True) -> None:
        self._memory = memory
        self._is_shared = is_shared
        self._roots: dict[Hashable, Block] = {}
        self._recency: OrderedDict[Block, None] = OrderedDict()  # a block comes after its descendants
        self.num_queried_tokens = 0
        self.num_hit_tokens = 0
        self.num_evictions = 0

    @property
    def num_blocks(self) -> int:
        """Blocks that hold K and V now."""
        return len(self._recency)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory taken, filled or not."""
        return self._memory.num_bytes

    def root_key(self, sequence: Sequence) -> Hashable:
        """What a sequence's tree is found by."""
        request = sequence.request
        scope = () if self._is_shared else tuple(one.content_hash for one in request.interventions)
        return request.cache_salt, scope

    def match(self, sequence: Sequence) -> PrefixMatch:
        """The longest cached start of a sequence within `num_reusable_tokens`; nothing is counted."""
        key = self.root_key(sequence)
        block = self._roots.get(key)
        if block is None:
            return PrefixMatch(key, ())
        limit = sequence.num_reusable_tokens
        blocks: list[Block] = []
        while (len(blocks) + 1) * BLOCK_SIZE <= limit:
            start = len(blocks) * BLOCK_SIZE
            child = block.children.get(sequence.block_content(start, start + BLOCK_SIZE))
            if child is None:
                break
            blocks.append(child)
            block = child
        start = len(blocks) * BLOCK_SIZE
        wanted = sequence.block_content(start, min(start + BLOCK_SIZE, limit))
        partial, num_partial = _closest(block, wanted)
        return PrefixMatch(key, tuple(blocks), partial, num_partial)

    def num_common_tokens(self, one: Sequence, other: Sequence) -> int:
        """Whole blocks that two prompts have in common and `one` may reuse, in tokens."""
        if self.root_key(one) != self.root_key(other):
            return 0
        pairs = zip(one.prompt_chain, other.prompt_chain, strict=False)
        num_blocks = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        limit = min(one.prompt_length - 1, one.num_reusable_tokens)
        return min(num_blocks * BLOCK_SIZE, limit // BLOCK_SIZE * BLOCK_SIZE)

    def start(self, sequence: Sequence, match: PrefixMatch) -> None:
        """Count a match, and pin its last block until `release`: the sequence goes on below it."""
        self.num_queried_tokens += len(sequence.token_ids)
        self.num_hit_tokens += match.num_tokens
        self._touch(match.partial or (match.blocks[-1] if match.blocks else None))
        root = self._roots.setdefault(match.root, Block(BlockContent((), ()), None))
        self._pin(sequence, match.blocks[-1] if match.blocks else root)
        sequence.num_cached_blocks = len(match.blocks)

    def load(self, match: PrefixMatch, slot: KVSlot, *, first: int = 0, end: int | None = None) -> None:
        """Copy tokens `[first, end)` of a match to the start of a slot; `first` is at the start of a block."""
        end = match.num_tokens if end is None else end
        sources = [*match.blocks, *([match.partial] if match.partial is not None else [])]
        for start in range(first, end, BLOCK_SIZE):
            count = min(BLOCK_SIZE, end - start)
            place = sources[start // BLOCK_SIZE].place
            assert place is not None  # roots are never part of a match
            self._memory.load(place, slot, start - first, count)

    def extend(self, sequence: Sequence, num_tokens: int, *, with_tail: bool = False) -> None:
        """Keep the whole blocks among the first `num_tokens` computed tokens of a sequence that has a slot.

        Args:
            with_tail: the last block too, when it is not full: nothing can hang below it, but a longer prompt that
                starts with it can copy it.
        """
        block = sequence.cached_block
        if block is None or sequence.slot is None:
            return
        start = sequence.num_cached_blocks * BLOCK_SIZE
        while start + BLOCK_SIZE <= num_tokens:
            content = sequence.block_content(start, start + BLOCK_SIZE)
            child = block.children.get(content) or self._add(block, content, sequence, start)
            if child is None:
                break
            block, start = child, start + BLOCK_SIZE
            sequence.num_cached_blocks += 1
            self._pin(sequence, block)
        if with_tail and 0 < num_tokens - start < BLOCK_SIZE:
            content = sequence.block_content(start, num_tokens)
            if content not in block.children and _closest(block, content)[1] < num_tokens - start:
                block = self._add(block, content, sequence, start) or block
        self._touch(block)

    def release(self, sequence: Sequence) -> None:
        """Let go of a sequence's place in the tree."""
        block, sequence.cached_block = sequence.cached_block, None
        if block is not None:
            block.num_users -= 1
            self._drop_if_empty_root(block)

    def _pin(self, sequence: Sequence, block: Block) -> None:
        if sequence.cached_block is not None:
            sequence.cached_block.num_users -= 1
        block.num_users += 1
        sequence.cached_block = block

    def _touch(self, block: Block | None) -> None:
        """Mark a block and its ancestors as used: descendants first, so that the least recent is always a leaf."""
        while block is not None and block.parent is not None:
            self._recency.move_to_end(block)
            block = block.parent

    def _add(self, parent: Block, content: BlockContent, sequence: Sequence, start: int) -> Block | None:
        """A new block with the K and V of a sequence from position `start` on; None when all memory is in use."""
        assert sequence.slot is not None  # checked by `extend`
        kept = sequence.slot, start - sequence.num_shared_tokens, len(content.token_ids)
        place = self._memory.keep(*kept)
        if place is None:
            self._evict_one(keep=parent)
            place = self._memory.keep(*kept)
        if place is None:
            return None
        block = Block(content, parent, place)
        parent.children[content] = block
        self._recency[block] = None
        return block

    def _evict_one(self, keep: Block) -> None:
        for block in self._recency:
            if not block.children and not block.num_users and block is not keep:
                self._remove(block)
                self.num_evictions += 1
                return

    def _remove(self, block: Block) -> None:
        assert block.place is not None  # only roots have none, and they are not in `_recency`
        assert block.parent is not None
        del self._recency[block]
        del block.parent.children[block.content]
        self._memory.drop(block.place)
        self._drop_if_empty_root(block.parent)

    def _drop_if_empty_root(self, block: Block) -> None:
        if block.parent is None and not block.children and not block.num_users:
            self._roots = {key: root for key, root in self._roots.items() if root is not block}


def _closest(parent: Block, wanted: BlockContent) -> tuple[Block | None, int]:
    """The child that agrees with `wanted` for the most tokens from its start on, and for how many; (None, 0)."""
    best: tuple[Block | None, int] = (None, 0)
    for child in islice(reversed(parent.children.values()), _MAX_SIBLINGS):
        num_tokens = child.content.num_common_tokens(wanted)
        if num_tokens > best[1]:
            best = child, num_tokens
    return best
