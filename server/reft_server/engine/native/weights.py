"""Frozen weights in the layout of `csrc/product.h`: panels of columns, in large pages where the system has them."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

from ..memory import map_zeros
from ..settings import WeightDtype
from .structures import Linear

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_STORED = {"model": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_LARGE_PAGE = 2 << 20
_MAPPING_BYTES = 64 << 20
_CACHE_LINE = 64


class Arena:
    """Memory for weights that live as long as the model: few large mappings, in large pages where the system has them.

    One core reads 33 GB/s from 2 MiB pages and 17 GB/s from 4 KiB ones (docs/log.md).
    """

    def __init__(self) -> None:
        self._buffer: mmap.mmap | None = None
        self._offset = 0

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros, aligned to a cache line."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if self._buffer is None or self._offset + num_bytes > len(self._buffer):
            self._buffer, self._offset = _map(max(num_bytes, _MAPPING_BYTES))
        tensor = torch.frombuffer(self._buffer, dtype=dtype, count=math.prod(shape), offset=self._offset)
        self._offset += -(-num_bytes // _CACHE_LINE) * _CACHE_LINE
        return tensor.view(shape)


def _map(num_bytes: int) -> tuple[mmap.mmap, int]:
    """A mapping with room for `num_bytes` from a multiple of the large page's size on, and that offset."""
    buffer = map_zeros(num_bytes + _LARGE_PAGE, in_large_pages=True)
    return buffer, -ctypes.addressof(ctypes.c_char.from_buffer(buffer)) % _LARGE_PAGE


@dataclass(frozen=True)
class PackedLinear:
    """A weight in panels, and what the kernels need to know of it."""

    panels: Tensor  # [num_panels, inputs, panel_columns]
    scale: Tensor | None  # [num_panels * panel_columns], float32; int8 only
    bias: Tensor | None  # [num_panels * panel_columns], float32
    outputs: int
    is_gated: bool

    def structure(self) -> Linear:
        """For C; valid as long as this object lives."""
        return Linear(
            panels=self.panels.data_ptr(),
            scale=None if self.scale is None else self.scale.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
            inputs=self.panels.shape[1],
            outputs=self.outputs,
            weight_type=_TYPES[self.panels.dtype],
            is_gated=self.is_gated,
        )


def pack_linear(
    weight: Tensor, bias: Tensor | None, panel_columns: int, weight_dtype: WeightDtype = "model", *, arena: Arena
) -> PackedLinear:
    """Pack a weight `[outputs, inputs]`, float32; the last panel is filled up with zeros."""
    outputs = weight.shape[0]
    num_rows = math.ceil(outputs / panel_columns) * panel_columns
    full_bias = None if bias is None else _fill_up(bias, num_rows)
    panels, scale = _pack(_fill_up(weight, num_rows), panel_columns, weight_dtype, arena)
    return PackedLinear(panels, scale, full_bias, outputs, is_gated=False)


def pack_gated(
    gate: Tensor,
    up: Tensor,
    biases: tuple[Tensor, Tensor] | None,
    panel_columns: int,
    weight_dtype: WeightDtype = "model",
    *,
    arena: Arena,
) -> PackedLinear:
    """Pack gate and up, `[outputs, inputs]` each, for silu(gate) * up: half of a panel is gate, the other up."""
    outputs, half = gate.shape[0], panel_columns // 2
    num_rows = math.ceil(outputs / half) * half

    def interleave(first: Tensor, second: Tensor) -> Tensor:
        pairs = [_fill_up(one, num_rows).unflatten(0, (-1, half)) for one in (first, second)]
        return torch.stack(pairs, dim=1).flatten(0, 2)

    bias = None if biases is None else interleave(*biases)
    panels, scale = _pack(interleave(gate, up), panel_columns, weight_dtype, arena)
    return PackedLinear(panels, scale, bias, outputs, is_gated=True)


def _pack(weight: Tensor, panel_columns: int, weight_dtype: WeightDtype, arena: Arena) -> tuple[Tensor, Tensor | None]:
    """Panels `[num_panels, inputs, panel_columns]`, and each row's scale if they are rounded to 8 bits."""
    scale = None
    if weight_dtype == "int8":
        scale = (weight.abs().amax(dim=1) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        weight = (weight / scale[:, None]).round_()
    panels = weight.unflatten(0, (-1, panel_columns)).transpose(1, 2)
    stored = arena.empty(tuple(panels.shape), _STORED[weight_dtype])
    stored.copy_(panels)
    return stored, scale


def _fill_up(tensor: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - tensor.shape[0]
    return tensor if not missing else torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
