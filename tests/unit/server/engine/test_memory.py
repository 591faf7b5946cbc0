"""Zeros that take no memory until they are written."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import pytest
import torch

from reft_server.engine.memory import lazy_zeros, map_zeros

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_lazy_zeros_are_zeros_that_can_be_written(dtype: torch.dtype) -> None:
    zeros = lazy_zeros((3, 5, 7), dtype, CPU)
    assert (zeros.shape, zeros.dtype) == ((3, 5, 7), dtype)
    assert not zeros.any()
    zeros[1, 2] = 4
    assert zeros.sum() == 28
    assert not lazy_zeros((3, 5, 7), dtype, CPU).any()


def test_lazy_zeros_may_be_empty() -> None:
    assert lazy_zeros((3, 0), torch.float32, CPU).shape == (3, 0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the resident size is read from /proc")
def test_lazy_zeros_take_memory_when_touched_and_give_it_back() -> None:
    size = 1 << 30
    before = resident_bytes()
    zeros = lazy_zeros((size,), torch.uint8, CPU)
    assert resident_bytes() - before < size // 16
    zeros[: size // 4] = 1
    assert resident_bytes() - before > size // 5
    del zeros
    gc.collect()
    assert resident_bytes() - before < size // 16


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="what a mapping is like is read from /proc")
@pytest.mark.parametrize("in_large_pages", [True, False])
def test_memory_is_private_and_asks_for_large_pages_where_wanted(in_large_pages: bool) -> None:
    mapping = map_zeros(8 << 20, in_large_pages=in_large_pages)
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
    permissions, flags = mapping_at(address)
    assert permissions.endswith("p")  # shared memory gets no large pages on most systems, whatever is asked for
    assert ("hg" in flags) == in_large_pages


def mapping_at(address: int) -> tuple[str, list[str]]:
    """Permissions and flags of the mapping that holds an address."""
    permissions = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            permissions = rest[0] if start <= address < end else ""
        elif first == "VmFlags:" and permissions:
            return permissions, rest
    raise LookupError(f"no mapping holds {address:#x}")


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
