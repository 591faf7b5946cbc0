"""Long starts that several running sequences have in common, held once and attended to in place."""

from __future__ import annotations

from dataclasses import dataclass

from .kv_cache import SharedPrefix
from .kv_memory import BLOCK_SIZE, KVAllocator, KVSlot
from .prefix_cache import Block, PrefixCache, PrefixMatch

_FEWEST_BLOCKS = 16  # 256 tokens: shorter starts are copied into each sequence's own row


@dataclass(eq=False)
class _Entry:
    slot: KVSlot
    blocks: tuple[Block, ...]
    num_users: int = 0


class SharedPrefixes:
    """Contiguous copies of cached blocks, each in a slot of its own that is freed with its last user."""

    def __init__(self, kv_cache: KVAllocator, prefix_cache: PrefixCache) -> None:
        self._kv_cache = kv_cache
        self._prefix_cache = prefix_cache
        self._by_block: dict[Block, _Entry] = {}
        self._by_slot: dict[KVSlot, _Entry] = {}

    def acquire(self, match: PrefixMatch) -> SharedPrefix | None:
        """The start of a match that a running sequence holds already, else a new copy of all its whole blocks.

        None when the match is short, or when there is no room. `release` must follow.
        """
        for num_blocks in range(len(match.blocks), _FEWEST_BLOCKS - 1, -1):
            entry = self._by_block.get(match.blocks[num_blocks - 1])
            if entry is not None:
                entry.num_users += 1
                return SharedPrefix(entry.slot, num_blocks * BLOCK_SIZE)
        if len(match.blocks) < _FEWEST_BLOCKS:
            return None
        num_tokens = len(match.blocks) * BLOCK_SIZE
        slot = self._kv_cache.allocate_single(num_tokens)
        if slot is None:
            return None
        self._prefix_cache.load(match, slot, end=num_tokens)
        entry = _Entry(slot, match.blocks, 1)
        self._by_slot[slot] = entry
        self._by_block |= dict.fromkeys(match.blocks, entry)
        return SharedPrefix(slot, num_tokens)

    def release(self, prefix: SharedPrefix) -> None:
        """A user has left."""
        entry = self._by_slot[prefix.slot]
        entry.num_users -= 1
        if not entry.num_users:
            self._kv_cache.free(entry.slot)
            del self._by_slot[entry.slot]
            for block in entry.blocks:
                if self._by_block.get(block) is entry:
                    del self._by_block[block]
