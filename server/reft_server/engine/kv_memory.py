"""What the engine asks of memory for K and V, be it extents (`kv_cache.py`) or pages (`paged_cache.py`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

BLOCK_SIZE = 16
"""Tokens of one block of the prefix cache, and of a page."""


@dataclass(frozen=True)
class KVLayout:
    """Shape of one token's K and V, per layer: (num_kv_heads, key dimension, value dimension).

    `is_paged`: the model path wants pages (`PagedKVCache`), not extents.
    """

    layers: tuple[tuple[int, int, int], ...]
    dtype: torch.dtype
    device: torch.device
    is_paged: bool = False

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


class KVSlot(ABC):
    """Where one sequence's K and V live."""

    is_free = False

    @property
    @abstractmethod
    def capacity(self) -> int:
        """Tokens that it has room for."""

    @property
    @abstractmethod
    def order(self) -> tuple[int, int]:
        """Sequences lie in a batch in this order, the same from step to step."""


class KVAllocator(Protocol):
    """Hands out slots within a budget: extents (`KVCache`) or pages (`PagedKVCache`)."""

    layout: KVLayout
    budget_bytes: int

    @property
    def num_bytes(self) -> int: ...

    @property
    def usage(self) -> float: ...

    def can_ever_fit(self, num_tokens: int) -> bool: ...

    def allocate(self, num_tokens: int) -> KVSlot | None: ...

    def allocate_single(self, num_tokens: int) -> KVSlot | None: ...

    def grow(self, slot: KVSlot, num_tokens: int, num_filled: int) -> KVSlot | None: ...

    def free(self, slot: KVSlot, *, scrub: bool = False) -> None: ...

    def block_memory(self, budget_bytes: int) -> BlockMemory: ...


class BlockMemory(Protocol):
    """Where the prefix cache's blocks have their K and V. A place is of the memory's own making."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory taken, filled or not."""
        ...

    def keep(self, slot: KVSlot, index: int, count: int) -> Hashable | None:
        """Keep tokens `[index, index + count)` of a slot, at most a block; None when all memory is in use."""
        ...

    def load(self, place: Hashable, slot: KVSlot, index: int, count: int) -> None:
        """Give a slot the first `count` tokens of a block at `index`."""
        ...

    def drop(self, place: Hashable) -> None:
        """Give a place back."""
        ...
