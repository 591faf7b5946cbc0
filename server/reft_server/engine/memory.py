"""Memory of the host and of a device, and how values get from one to the other."""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def lazy_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.zeros`; on a CPU the system gives, and zeroes, each page when it is first touched.

    `torch.zeros` writes all of it at once: a slab of 1.5 GB stops the engine for seconds (docs/log.md). The memory goes
    back to the system as soon as the tensor is gone.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not num_bytes:
        return torch.zeros(*shape, dtype=dtype, device=device)
    return torch.frombuffer(map_zeros(num_bytes), dtype=dtype).view(*shape)


def map_zeros(num_bytes: int, *, in_large_pages: bool = False) -> mmap.mmap:
    """Anonymous memory of this process, zero and not yet resident.

    Args:
        in_large_pages: 2 MiB where the system has them: read faster, but zeroed and resident 2 MiB at a time.
    """
    # Not Python's default: shared memory gets large pages only where the system is told so apart.
    mapping = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if in_large_pages and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping


_NUMPY_DTYPES = MappingProxyType({torch.int32: np.int32, torch.int64: np.int64, torch.float64: np.float64})


def to_host(values: Sequence[Any] | NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values on the host, to be copied to `device`: page-locked where that lets the host go on meanwhile.

    The allocator of page-locked memory gives none out again before the copies from it are made.
    """
    found = torch.from_numpy(np.array(values, _NUMPY_DTYPES[dtype]))  # seven times as fast as `torch.tensor`
    return found.pin_memory() if device.type == "cuda" else found


def to_device(values: Sequence[Any] | NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`torch.tensor(values)` on a device, without waiting for it."""
    return to_host(values, dtype, device).to(device, non_blocking=True)
