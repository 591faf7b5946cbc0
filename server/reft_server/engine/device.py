"""The device that the model is on: who launches there, and how its memory is shared out."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch

from reft_server.errors import ConfigurationError

from .settings import EngineSettings

_HOST_KV_BYTES = 2 << 30
_HOST_PREFIX_BYTES = 1 << 30
_PREFIX_SHARE = 3  # a prefix cache that is not set gets this part of what is left on a GPU


def use_device(device: torch.device) -> None:
    """Make a GPU the calling thread's current one.

    Triton launches on the current device, wherever its tensors are, and every thread starts with the first one.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of a GPU, bytes: `total` and `free` whoever uses it; `peak` is what a step takes at most."""

    total: int
    free: int
    peak: int


def measure_memory(device: torch.device, largest_step: Callable[[], object]) -> DeviceMemory | None:
    """What is free beside the model, and what a step takes; None on a CPU, which has no bound of its own.

    Args:
        largest_step: runs as many tokens as a step may have.

    Raises:
        ConfigurationError: the model and such a step don't fit the device.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        largest_step()
        peak = torch.cuda.max_memory_allocated(device) - before
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            f"Beside the model, a step of that many tokens does not fit {device}: lower "
            "--engine-max-num-batched-tokens, or take a smaller --dtype or a smaller model.",
            param="engine_max_num_batched_tokens",
        ) from error
    gc.collect()
    torch.cuda.empty_cache()  # what packing the model and the step have left to the allocator
    free, total = torch.cuda.mem_get_info(device)
    return DeviceMemory(total, free, peak)


@dataclass(frozen=True)
class CacheSizes:
    """Bytes for K and V: of running sequences, and of blocks kept for reuse."""

    kv_bytes: int
    prefix_bytes: int


def cache_sizes(
    settings: EngineSettings, memory: DeviceMemory | None, *, min_bytes: int, reserved_bytes: int = 0
) -> CacheSizes:
    """What is set, or else what is left of the server's share of a GPU, or else 2 GiB and 1 GiB.

    Args:
        memory: of the GPU with the model on it; None = a CPU.
        min_bytes: K and V of one block of tokens: less serves nobody.
        reserved_bytes: of the GPU's memory, what others will take.

    Raises:
        ConfigurationError: the GPU has not so much left.
    """
    is_kept = settings.prefix_cache_scope != "off"
    kv_bytes, prefix_bytes = settings.kv_cache_bytes, settings.prefix_cache_bytes if is_kept else 0
    if memory is None:
        return CacheSizes(
            _HOST_KV_BYTES if kv_bytes is None else kv_bytes,
            _HOST_PREFIX_BYTES if prefix_bytes is None else prefix_bytes,
        )
    reserved = memory.peak + reserved_bytes
    room = memory.free - reserved
    share = room - int((1.0 - settings.device_memory_share) * memory.total)
    if prefix_bytes is None:
        prefix_bytes = max(min(share // _PREFIX_SHARE, share - (kv_bytes or 0)), 0)
    if kv_bytes is None:
        kv_bytes = share - prefix_bytes
    if kv_bytes < min_bytes or kv_bytes + prefix_bytes > room:
        raise ConfigurationError(
            f"K and V don't fit the GPU: of its {_gib(memory.total)}, {_gib(memory.free)} are free beside the model, "
            f"{_gib(reserved)} of them for a step's work and for interventions, and {_gib(kv_bytes + prefix_bytes)} "
            "are asked for. Lower --engine-kv-cache-bytes, --engine-prefix-cache-bytes, --intervention-device-bytes or "
            "--engine-max-num-batched-tokens, or raise --engine-device-memory-share.",
            param="engine_kv_cache_bytes",
        )
    return CacheSizes(kv_bytes, prefix_bytes)


def _gib(num_bytes: int) -> str:
    return f"{max(num_bytes, 0) / (1 << 30):.1f} GiB"
