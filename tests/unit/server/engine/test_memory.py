"""Zeros that take no memory until they are written."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from reft_server.engine.memory import lazy_zeros

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


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
