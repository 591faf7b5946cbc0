"""How a GPU's memory is shared out."""

from __future__ import annotations

import asyncio
import copy
import threading
from typing import Any

import pytest
import torch

from reft_server.engine import EngineSettings, build, build_engine
from reft_server.engine import engine as engine_module
from reft_server.engine.device import CacheSizes, DeviceMemory, cache_sizes
from reft_server.errors import ConfigurationError

GIB = 1 << 30
H200 = DeviceMemory(total=140 * GIB, free=120 * GIB, peak=4 * GIB)


def sizes(memory: DeviceMemory | None = None, reserved_bytes: int = 0, **settings: Any) -> CacheSizes:
    return cache_sizes(EngineSettings(**settings), memory, min_bytes=1 << 20, reserved_bytes=reserved_bytes)


def test_a_cpu_has_sizes_that_fit_a_laptop() -> None:
    assert sizes() == CacheSizes(2 * GIB, GIB)
    assert sizes(kv_cache_bytes=5, prefix_cache_bytes=7) == CacheSizes(5, 7)
    assert sizes(prefix_cache_scope="off") == CacheSizes(2 * GIB, 0)


def test_caches_share_what_is_left_of_a_gpu() -> None:
    room = (120 - 4 - 2 - 14) * GIB  # free - peak - interventions - a tenth of all
    found = sizes(H200, reserved_bytes=2 * GIB)
    assert found.kv_bytes + found.prefix_bytes == pytest.approx(room, abs=8)
    assert found.prefix_bytes == pytest.approx(room / 3, abs=8)
    assert sizes(H200, reserved_bytes=2 * GIB, prefix_cache_scope="off").kv_bytes == pytest.approx(room, abs=8)
    assert sizes(H200, prefix_cache_bytes=2 * GIB).kv_bytes == pytest.approx(100 * GIB, abs=8)
    assert sizes(H200, kv_cache_bytes=90 * GIB).prefix_bytes == pytest.approx(12 * GIB, abs=8)


def test_sizes_that_are_set_may_go_beyond_the_share_but_not_beyond_the_gpu() -> None:
    assert sizes(H200, kv_cache_bytes=110 * GIB, prefix_cache_bytes=6 * GIB) == CacheSizes(110 * GIB, 6 * GIB)
    with pytest.raises(
        ConfigurationError, match=r"140\.0 GiB, 120\.0 GiB are free .* 117\.0 GiB are asked for"
    ) as info:
        sizes(H200, kv_cache_bytes=110 * GIB, prefix_cache_bytes=7 * GIB)
    assert info.value.param == "engine_kv_cache_bytes"


def test_a_gpu_that_the_model_fills_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--engine-device-memory-share"):
        sizes(DeviceMemory(total=24 * GIB, free=3 * GIB, peak=GIB))


def test_an_engine_takes_its_sizes_from_the_device(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a step of the largest size, which is run."""
    num_runs: list[int] = []

    def measure(device: object, largest_step: Any) -> DeviceMemory:
        largest_step()
        num_runs.append(1)
        return DeviceMemory(total=40 << 20, free=20 << 20, peak=1 << 20)

    monkeypatch.setattr(build, "measure_memory", measure)
    engine = build_engine(copy.deepcopy(tiny_model("llama")), "tiny", EngineSettings(max_num_seqs=3))
    assert num_runs == [1]  # a step with edits, and a choice of three tokens
    assert engine._kv_cache.budget_bytes == pytest.approx((20 - 1 - 4) / 3 * 2 * (1 << 20), abs=8)


def test_the_thread_that_launches_is_on_the_models_gpu(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that builds the engine, then the engine's own: Triton launches on a thread's current device."""
    chosen: list[tuple[str, torch.device]] = []

    def note(device: torch.device) -> None:
        chosen.append((threading.current_thread().name, device))

    for module in (build, engine_module):
        monkeypatch.setattr(module, "use_device", note)
    engine = build_engine(copy.deepcopy(tiny_model("llama")), "tiny", EngineSettings(kv_cache_bytes=1 << 20))
    engine.start()
    asyncio.run(engine.stop())
    assert chosen == [(name, torch.device("cpu")) for name in (threading.current_thread().name, "reft-engine")]
