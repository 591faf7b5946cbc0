"""Copies from host memory to a device, beside the kernels that run there."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class CopyStream(Protocol):
    """Copies whole buffers to one device; `copy` may be called by any thread."""

    is_pinned: bool
    """Buffers to copy from should be page-locked."""

    def copy(self, source: Tensor) -> Tensor:
        """A copy of `source` on the device, which whatever the engine launches from now on may read."""
        ...


class BlockingCopies:
    """`CopyStream` on a device without streams: a copy is there when `copy` returns."""

    is_pinned = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def copy(self, source: Tensor) -> Tensor:
        return source.to(self._device)


class SideStream:
    """`CopyStream` on a GPU: a stream of its own, so that copies and the engine's kernels run at the same time.

    The host waits for nothing. The engine's stream waits for the copy, on the device; it is the device's default
    stream, on which the engine's thread launches everything. The other way round, nothing that was launched before a
    buffer's last reference went is overtaken by the next copy into its memory, although copies don't wait for the
    engine: the buffer is recorded on the engine's stream, so the allocator gives its memory out again only when that
    stream has come to where it was when the buffer was freed. That covers edit tables too, which hold bare addresses:
    the engine refers to a step's sets until the step is launched.
    """

    is_pinned = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._engine_stream = torch.cuda.default_stream(device)

    def copy(self, source: Tensor) -> Tensor:
        """A copy of page-locked memory, which the allocator keeps until the copy has been made, whoever drops it."""
        with torch.cuda.stream(self._stream):
            target = torch.empty(source.shape, dtype=source.dtype, device=self._device)
            target.copy_(source, non_blocking=True)
            copied = self._stream.record_event()
        self._engine_stream.wait_event(copied)
        target.record_stream(self._engine_stream)
        return target


def copy_stream(device: torch.device) -> CopyStream:
    """How copies get to `device`."""
    return SideStream(device) if device.type == "cuda" else BlockingCopies(device)
