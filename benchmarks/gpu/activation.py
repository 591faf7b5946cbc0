"""How long a set takes to the device, from host memory and from the store's files."""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.inputs import PROMPT_ONLY, RANK, digits, random_set, synchronize
from benchmarks.gpu.plan import Plan
from benchmarks.machine import median
from reft_interventions import FORMULAS, BaseModelSpec, InterventionSet, InterventionSpec, Manifest
from reft_interventions.file_format import FileLimits, save
from reft_interventions.folded import FoldedSet
from reft_interventions.store import InterventionStore, StoredVersion
from reft_interventions.validation import check_base
from reft_server.engine import LocalEngine
from reft_server.engine.device_pool import DevicePool


def activation(plan: Plan, engine: LocalEngine, found: dict[str, Any]) -> None:
    """Milliseconds until a set is on the device: from host memory, and from a file that the system has cached.

    From a file, all of it is done again each time: reading, checking, hashing, folding, packing, copying.
    """
    found["set_bytes"] = random_set(plan.num_layers, plan.width, PROMPT_ONLY, 0).num_bytes
    found["from_host_ms"] = digits(1e3 * median(asyncio.run(_from_host_s(plan))))
    with tempfile.TemporaryDirectory() as folder:
        found["from_disk_ms"] = digits(1e3 * median(asyncio.run(_from_disk_s(plan, engine, Path(folder)))))


async def _from_host_s(plan: Plan) -> list[float]:
    """Room is made for each set by the one before."""
    sets = [random_set(plan.num_layers, plan.width, PROMPT_ONLY, seed) for seed in range(2)]
    pool = DevicePool(plan.device, sets[0].num_bytes, max_wait_s=10.0)
    staged = [pool.stage(one) for one in sets]
    seconds = []
    for turn in range(plan.num_warm_ups + plan.repeats):
        started = time.perf_counter()
        await pool.place([staged[turn % 2]])
        synchronize(plan)
        seconds.append(time.perf_counter() - started)
    return seconds[plan.num_warm_ups :]


async def _from_disk_s(plan: Plan, engine: LocalEngine, folder: Path) -> list[float]:
    """As the registry does it, for sets that are not in memory."""
    info = engine.model_info
    base = BaseModelSpec(info.model_id, info.fingerprint, info.hidden_size, info.num_layers)
    store = InterventionStore(folder / "store")
    stored = []
    for seed in range(2):
        path, made = folder / f"{seed}.safetensors", _random_set_file(base, seed)
        save(made, path)
        stored.append(store.put(path, f"set-{seed}", made))
    pool = DevicePool(plan.device, 3 * made.fold().num_bytes // 2, max_wait_s=10.0)

    def load(one: StoredVersion) -> FoldedSet:
        intervention_set = store.load(one, FileLimits())
        check_base(intervention_set, base)
        return pool.stage(intervention_set.fold())

    seconds = []
    for turn in range(plan.num_warm_ups + plan.repeats):
        started = time.perf_counter()
        await pool.place([await asyncio.to_thread(load, stored[turn % 2])])
        synchronize(plan)
        seconds.append(time.perf_counter() - started)
    store.close()
    return seconds[plan.num_warm_ups :]


def _random_set_file(base: BaseModelSpec, seed: int) -> InterventionSet:
    """LoReFT on every layer."""
    generator = torch.Generator().manual_seed(seed)
    specs = tuple(
        InterventionSpec(
            layer=layer,
            component="block_output",
            formula="loreft",
            low_rank_dimension=RANK,
            positions=PROMPT_ONLY,
            parameters=layer,
        )
        for layer in range(base.num_layers)
    )
    groups = [FORMULAS["loreft"].initial_parameters(base.hidden_size, RANK, generator) for _ in specs]
    manifest = Manifest(name=f"random-{seed}", base_model=base.to_ref(), interventions=specs)
    return InterventionSet.create(manifest, groups)
