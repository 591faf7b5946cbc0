"""KV cache of contiguous extents: one row of a slab per sequence, bounded in bytes.

A slab holds rows of one capacity (64, 96, 128, 192, … tokens), so that the decoding sequences of a slab share one
attention call over a plain view, without gathering the cache. Slabs are made on demand and dropped when empty.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from .memory import lazy_zeros

_MIN_CAPACITY = 64
_SLAB_SHARE = 4  # one slab takes at most this fraction of the budget, unless a single row needs more


@dataclass(frozen=True)
class KVLayout:
    """Shape of one token's K and V, per layer: (num_kv_heads, key dimension, value dimension)."""

    layers: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        return sum(heads * (key + value) for heads, key, value in self.layers) * self.dtype.itemsize

    @cached_property
    def stack_shapes(self) -> tuple[tuple[tuple[int, int], int], ...]:
        """Each distinct (num_kv_heads, dimension) of a K or V tensor, with how many tensors have it."""
        return tuple(Counter(self._tensor_shapes).items())

    def unstack(self, stacks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's K and every layer's V out of stacks `[count, …]` in the order of `stack_shapes`."""
        remaining = {shape: iter(stack) for (shape, _), stack in zip(self.stack_shapes, stacks, strict=True)}
        tensors = [next(remaining[shape]) for shape in self._tensor_shapes]
        return tensors[0::2], tensors[1::2]

    @property
    def _tensor_shapes(self) -> list[tuple[int, int]]:
        return [(heads, dim) for heads, key, value in self.layers for dim in (key, value)]


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
class KVSlot:
    """Where one sequence's K and V live."""

    slab: Slab
    row: int
    is_free: bool = field(default=False, repr=False)

    @property
    def capacity(self) -> int:
        return self.slab.capacity


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

    def allocate(self, num_tokens: int) -> KVSlot | None:
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

    def allocate_single(self, num_tokens: int) -> KVSlot | None:
        """A slot for exactly `num_tokens` tokens in a slab of its own, or None when the budget is used up."""
        return self._add_slab(num_tokens, 1)

    def grow(self, slot: KVSlot, num_tokens: int, num_filled: int) -> KVSlot | None:
        """Move a sequence to a larger slot, its first `num_filled` tokens with it; None when there is no room."""
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
        if slot.is_free:
            raise RuntimeError("a KV slot was freed twice")
        slot.is_free = True
        if scrub:
            for stack in slot.slab.stacks:
                stack[:, slot.row].zero_()
        slot.slab.free_rows.append(slot.row)
        slot.slab.free_rows.sort(reverse=True)  # the lowest row is taken first: decode views stay short

    def _take(self, slab: Slab) -> KVSlot:
        return KVSlot(slab, slab.free_rows.pop())

    def _add_slab(self, capacity: int, num_rows: int) -> KVSlot | None:
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


def _capacities(max_tokens: int) -> list[int]:
    """64, 96, 128, 192, 256, … and `max_tokens` itself as the last."""
    capacities: list[int] = []
    size = _MIN_CAPACITY
    while size < max_tokens:
        capacities += [size, size * 3 // 2]
        size *= 2
    return [capacity for capacity in capacities if capacity < max_tokens] + [max_tokens]
