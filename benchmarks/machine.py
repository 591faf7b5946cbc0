"""What the figures were taken on, and what it can do at best."""

from __future__ import annotations

import fcntl
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
NUM_HEAD_WEIGHTS = 49_152 * 576
NUM_BLOCK_WEIGHTS = 134_515_008 - NUM_HEAD_WEIGHTS
"""Of the default model, whose embedding is its head."""


def describe() -> dict[str, object]:
    """Processor, cores, memory, versions and commit."""
    return {
        "cpu": _cpu_model(),
        "num_cores": torch.get_num_threads(),
        "memory_gib": round(_memory_bytes() / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "reft-serve")},
        "commit": _commit(),
    }


def ceilings(*, is_quick: bool = False) -> dict[str, float]:
    """Best float32 matrix product rate at 4,096 rows, GFLOP/s, and best memory read rate, GB/s; quickly, neither."""
    left, right = torch.randn(64 if is_quick else 4096, 576), torch.randn(576, 1536)
    seconds = _best_s(lambda: left @ right, 15)
    gflops = 2 * left.shape[0] * left.shape[1] * right.shape[1] / seconds / 1e9
    block = torch.ones(1 << (20 if is_quick else 27))  # 512 MiB: far larger than any cache
    return {
        "gemm_gflops": round(gflops, 1),
        "read_gb_per_s": round(block.nbytes / _best_s(block.sum, 9) / 1e9, 1),
    }


def prefill_floor_s(peak: dict[str, float], num_tokens: int, num_block_weights: int = NUM_BLOCK_WEIGHTS) -> float:
    """Seconds of a model's blocks on prompt tokens, at the product rate; only the last token has a head."""
    return 2 * num_block_weights * num_tokens / (peak["gemm_gflops"] * 1e9)


def job_ceiling(
    peak: dict[str, float],
    num_requests: int,
    num_prompt_tokens: int,
    num_new_tokens: int,
    num_weights: tuple[int, int] = (NUM_BLOCK_WEIGHTS, NUM_HEAD_WEIGHTS),
) -> float:
    """Output tokens/s of a job in float32 if only weights, of blocks and of the head, were read and multiplied.

    A step of new tokens takes its products or one read of all weights, whichever is longer.
    """
    products_s = 2 * sum(num_weights) * num_requests / (peak["gemm_gflops"] * 1e9)
    read_s = 4 * sum(num_weights) / (peak["read_gb_per_s"] * 1e9)
    prompts_s = prefill_floor_s(peak, num_requests * num_prompt_tokens, num_weights[0])
    return num_requests * num_new_tokens / (prompts_s + num_new_tokens * max(products_s, read_s))


def busy_cores(seconds: float = 1.0) -> float:
    """Cores that anything at all uses right now, over some time."""

    def used_and_all() -> tuple[int, int]:
        ticks = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # the fourth and fifth: idle, waiting for a disk

    used_before, all_before = used_and_all()
    time.sleep(seconds)
    used, total = used_and_all()
    return round((os.cpu_count() or 1) * (used - used_before) / max(1, total - all_before), 2)


@contextmanager
def machine_lock(path: Path | None, *, is_exclusive: bool) -> Iterator[None]:
    """Hold `path` as `flock` does, on a machine that several people measure on; None = do nothing."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX if is_exclusive else fcntl.LOCK_SH)
        yield


def median(values: list[float]) -> float:
    return statistics.median(values)


def _best_s(function: Callable[[], object], repeats: int) -> float:
    function()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def _memory_bytes() -> int:
    first = Path("/proc/meminfo").read_text().splitlines()[0]
    return int(first.split()[1]) * 1024


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from its sources
        return "not installed"
