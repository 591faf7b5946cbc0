"""KV cache of contiguous extents: one row of a slab per sequence, bounded in bytes.

A slab holds rows of one capacity (64, 96, 128, 192, … tokens), so that the decoding sequences of a slab share one
attention call over a plain view, without gathering the cache. Slabs are made on demand and dropped when empty.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import Tensor

from .kv_memory import BLOCK_SIZE, KVLayout, KVSlot
from .memory import lazy_zeros

_MIN_CAPACITY = 64
_BLOCKS_PER_ARENA = 64
_SLAB_SHARE = 4  # one slab takes at most this fraction of the budget, unless a single row needs more


class Slab:
    """K and V of `num_rows` sequences of up to `capacity` tokens: `[num_rows, num_kv_heads, capacity, dim]` a layer.

    `keys` and `values` are views into `stacks`, which hold all tensors of one shape, so that a row is copied at once.

    Memory starts as zeros, never as garbage: a masked position still meets `0 * value`, and NaN would survive it.
    """

    def __init__(self, layout: KVLayout, capacity: int, num_rows: int) -> None:
        self.capacity = capacity
        self.num_rows = num_rows
        self.stacks = [
            lazy_zeros((count, num_rows, heads, capacity, dim), layout.dtype, layout.device)
            for (heads, dim), count in layout.stack_shapes
        ]
        self.keys, self.values = layout.unstack(self.stacks)
        self.num_bytes = layout.bytes_per_token * capacity * num_rows
        self.free_rows = list(range(num_rows - 1, -1, -1))

    @property
    def num_live_rows(self) -> int:
        return self.num_rows - len(self.free_rows)


@dataclass(eq=False)
class ExtentSlot(KVSlot):
    """A row of a slab: contiguous K and V."""

    slab: Slab
    row: int

    @property
    def capacity(self) -> int:
        return self.slab.capacity

    @property
    def order(self) -> tuple[int, int]:
        return id(self.slab), self.row


@dataclass(eq=False)
class SharedPrefix:
    """The first tokens of several running sequences, held once.

    Positions below `num_tokens` are in `slot`; later ones are in a sequence's own slot, `num_tokens` further down.
    """

    slot: KVSlot
    num_tokens: int


class KVCache:
    """Hands out slots and never holds more than `budget_bytes`.

    Args:
        layout: shape of one token.
        budget_bytes: bound over all slabs, bytes.
        max_rows: rows of one slab; the number of sequences that run at once.
        max_tokens: the longest sequence.
    """

    def __init__(self, layout: KVLayout, *, budget_bytes: int, max_rows: int, max_tokens: int) -> None:
        self.layout = layout
        self.budget_bytes = budget_bytes
        self._max_rows = max_rows
        self._capacities = _capacities(max_tokens)
        self._slabs: list[Slab] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of all slabs, rows in use or not."""
        return sum(slab.num_bytes for slab in self._slabs)

    @property
    def usage(self) -> float:
        """Share of the budget that live sequences hold, 0 to 1."""
        per_token = self.layout.bytes_per_token
        live = sum(slab.num_live_rows * slab.capacity * per_token for slab in self._slabs)
        return live / self.budget_bytes if self.budget_bytes else 0.0

    def can_ever_fit(self, num_tokens: int) -> bool:
        """Whether an otherwise empty cache has room for a sequence of `num_tokens`."""
        return num_tokens <= self._capacities[-1] and self._row_bytes(num_tokens) <= self.budget_bytes

    def allocate(self, num_tokens: int) -> ExtentSlot | None:
        """A slot for at least `num_tokens` tokens, or None when the budget is used up."""
        capacity = self._capacity_for(num_tokens)
        for slab in self._slabs:
            if slab.capacity == capacity and slab.free_rows:
                return self._take(slab)
        row_bytes = self.layout.bytes_per_token * capacity
        num_rows = min(
            self._max_rows, self._room(row_bytes) // row_bytes, self.budget_bytes // _SLAB_SHARE // row_bytes
        )
        return self._add_slab(capacity, max(1, num_rows))

    def allocate_single(self, num_tokens: int) -> ExtentSlot | None:
        """A slot for exactly `num_tokens` tokens in a slab of its own, or None when the budget is used up."""
        return self._add_slab(num_tokens, 1)

    def grow(self, slot: KVSlot, num_tokens: int, num_filled: int) -> ExtentSlot | None:
        """Move a sequence to a larger slot, its first `num_filled` tokens with it; None when there is no room."""
        assert isinstance(slot, ExtentSlot)  # one of this cache's own
        larger = self.allocate(num_tokens)
        if larger is None:
            return None
        for old, new in zip(slot.slab.stacks, larger.slab.stacks, strict=True):
            new[:, larger.row, :, :num_filled] = old[:, slot.row, :, :num_filled]
        self.free(slot)
        return larger

    def free(self, slot: KVSlot, *, scrub: bool = False) -> None:
        """Give a slot back. Freeing twice is a bug of the caller.

        Args:
            scrub: overwrite it with zeros: what it holds may not be finite, and masked attention would spread that.
        """
        assert isinstance(slot, ExtentSlot)  # one of this cache's own
        if slot.is_free:
            raise RuntimeError("a KV slot was freed twice")
        slot.is_free = True
        if scrub:
            for stack in slot.slab.stacks:
                stack[:, slot.row].zero_()
        slot.slab.free_rows.append(slot.row)
        slot.slab.free_rows.sort(reverse=True)  # the lowest row is taken first: decode views stay short

    def block_memory(self, budget_bytes: int) -> CopiedBlocks:
        """Memory for copies of blocks, besides the slabs."""
        return CopiedBlocks(self.layout, budget_bytes)

    def _take(self, slab: Slab) -> ExtentSlot:
        return ExtentSlot(slab, slab.free_rows.pop())

    def _add_slab(self, capacity: int, num_rows: int) -> ExtentSlot | None:
        num_bytes = self.layout.bytes_per_token * capacity * num_rows
        if num_bytes > self._room(num_bytes):
            return None
        self._slabs.append(Slab(self.layout, capacity, num_rows))
        return self._take(self._slabs[-1])

    def _room(self, num_wanted_bytes: int) -> int:
        """Bytes left of the budget; empty slabs are dropped when that is less than is wanted."""
        if self.num_bytes + num_wanted_bytes > self.budget_bytes:
            self._slabs = [slab for slab in self._slabs if slab.num_live_rows]
        return self.budget_bytes - self.num_bytes

    def _capacity_for(self, num_tokens: int) -> int:
        return next(capacity for capacity in self._capacities if capacity >= num_tokens)

    def _row_bytes(self, num_tokens: int) -> int:
        return self.layout.bytes_per_token * self._capacity_for(num_tokens)


class _Arena:
    """Memory of some blocks: one `[num_blocks, count, num_kv_heads, BLOCK_SIZE, dim]` tensor per stack of a slab."""

    def __init__(self, layout: KVLayout, num_blocks: int) -> None:
        self.stacks = [
            lazy_zeros((num_blocks, count, heads, BLOCK_SIZE, dim), layout.dtype, layout.device)
            for (heads, dim), count in layout.stack_shapes
        ]


@dataclass(frozen=True, eq=False)
class _Copy:
    arena: _Arena
    index: int

    @property
    def stacks(self) -> list[Tensor]:
        return [stack[self.index] for stack in self.arena.stacks]


class CopiedBlocks:
    """`BlockMemory` of copies; memory is taken as it fills."""

    def __init__(self, layout: KVLayout, budget_bytes: int) -> None:
        self._layout = layout
        self._max_blocks = budget_bytes // (layout.bytes_per_token * BLOCK_SIZE)
        self._num_allocated = 0
        self._free: list[_Copy] = []

    @property
    def num_bytes(self) -> int:
        return self._num_allocated * self._layout.bytes_per_token * BLOCK_SIZE

    def keep(self, slot: KVSlot, index: int, count: int) -> _Copy | None:
        assert isinstance(slot, ExtentSlot)  # of the cache that made this memory
        if not self._free and self._num_allocated < self._max_blocks:
            num_blocks = min(_BLOCKS_PER_ARENA, self._max_blocks - self._num_allocated)
            arena = _Arena(self._layout, num_blocks)
            self._free = [_Copy(arena, number) for number in reversed(range(num_blocks))]
            self._num_allocated += num_blocks
        if not self._free:
            return None
        place = self._free.pop()
        for kept, stack in zip(place.stacks, slot.slab.stacks, strict=True):
            kept[:, :, :count] = stack[:, slot.row, :, index : index + count]
        return place

    def load(self, place: Hashable, slot: KVSlot, index: int, count: int) -> None:
        assert isinstance(place, _Copy)  # made by `keep`
        assert isinstance(slot, ExtentSlot)  # of the cache that made this memory
        for kept, stack in zip(place.stacks, slot.slab.stacks, strict=True):
            stack[:, slot.row, :, index : index + count] = kept[:, :, :count]

    def drop(self, place: Hashable) -> None:
        assert isinstance(place, _Copy)  # made by `keep`
        self._free.append(place)


def _capacities(max_tokens: int) -> list[int]:
    """64, 96, 128, 192, 256, … and `max_tokens` itself as the last."""
    capacities: list[int] = []
    size = _MIN_CAPACITY
    while size < max_tokens:
        capacities += [size, size * 3 // 2]
        size *= 2
    return [capacity for capacity in capacities if capacity < max_tokens] + [max_tokens]
