"""Random adapters as files: sets of ours, LoRAs as PEFT writes them, and llama.cpp's control vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file

from benchmarks.model import BenchmarkModel, load
from reft_client import AsyncReftClient
from reft_interventions import FORMULAS, InterventionSet, InterventionSpec, Manifest
from reft_interventions.file_format import save

LORA_RANK, LORA_MODULES = 8, ("q_proj", "v_proj")
"""PEFT's defaults for this shape."""
STEERING_STRENGTH = 0.05


async def upload_random_sets(
    url: str,
    folder: Path,
    num_sets: int,
    *,
    positions: str = "f3+l3",
    prefix: str = "set",
    model: BenchmarkModel | None = None,
) -> list[str]:
    """Write LoReFT sets to `folder` and upload them; their names."""

    def write(path: Path, seed: int) -> None:
        write_random_set(path, seed, positions=positions, model=model)

    return await upload_sets(url, folder, [f"{prefix}-{seed}" for seed in range(num_sets)], write)


async def upload_sets(url: str, folder: Path, names: list[str], write: Callable[[Path, int], None]) -> list[str]:
    """Upload what `write(path, seed)` makes under each of the names; the names."""
    async with AsyncReftClient(url) as client:
        for seed, name in enumerate(names):
            path = folder / f"{name}.safetensors"
            write(path, seed)
            await client.interventions.upload(path, name)
    return names


def write_random_set(
    path: Path,
    seed: int,
    *,
    positions: str = "f3+l3",
    low_rank_dimension: int = 4,
    model: BenchmarkModel | None = None,
) -> None:
    """A LoReFT set of five layers of a model (the default one), random and strong enough to change its tokens."""
    model = model or load()
    generator = torch.Generator().manual_seed(seed)
    formula = FORMULAS["loreft"]
    groups = []
    for _ in model.edited_layers:
        group = formula.initial_parameters(model.hidden_size, low_rank_dimension, generator)
        group["learned_source_bias"] = 4.0 * torch.randn(low_rank_dimension, generator=generator)
        groups.append(group)
    specs = tuple(
        InterventionSpec(
            layer=layer,
            component="block_output",
            formula="loreft",
            low_rank_dimension=low_rank_dimension,
            positions=positions,
            parameters=index,
        )
        for index, layer in enumerate(model.edited_layers)
    )
    manifest = Manifest(name=f"random-{seed}", base_model=model.base_ref, interventions=specs)
    save(InterventionSet.create(manifest, groups), path)


def write_steering_set(path: Path, seed: int, model: BenchmarkModel) -> None:
    """A vector for every layer but the first, added at every token: what a control vector of llama.cpp is."""
    layers = range(1, model.num_layers)
    specs = tuple(
        InterventionSpec(
            layer=layer,
            component="block_output",
            formula="addition",
            low_rank_dimension=0,
            positions="all",
            parameters=index,
        )
        for index, layer in enumerate(layers)
    )
    groups = [{"vector": _direction(model, seed, layer)} for layer in layers]
    manifest = Manifest(name=f"steering-{seed}", base_model=model.base_ref, interventions=specs)
    save(InterventionSet.create(manifest, groups), path)


def write_control_vector(path: Path, seed: int, model: BenchmarkModel) -> None:
    """The same vectors as a GGUF file of llama.cpp."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", model.num_layers - 1)
    for layer in range(1, model.num_layers):
        writer.add_tensor(f"direction.{layer}", _direction(model, seed, layer).numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _direction(model: BenchmarkModel, seed: int, layer: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + layer)
    return STEERING_STRENGTH * torch.randn(model.hidden_size, generator=generator)


def write_random_lora(folder: Path, seed: int, model: BenchmarkModel) -> None:
    """A LoRA on q and v of every layer, random and weak."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    sizes = {"q_proj": model.query_size, "v_proj": model.value_size}
    tensors = {}
    for layer in range(model.num_layers):
        for module in LORA_MODULES:
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            down = torch.randn(LORA_RANK, model.hidden_size, generator=generator) / model.hidden_size**0.5
            tensors[f"{name}.lora_A.weight"] = down
            tensors[f"{name}.lora_B.weight"] = 0.02 * torch.randn(sizes[module], LORA_RANK, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(model.path),
        "r": LORA_RANK,
        "lora_alpha": 2 * LORA_RANK,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(LORA_MODULES),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def write_random_loras(folder: Path, num_loras: int, model: BenchmarkModel) -> list[str]:
    """LoRAs in folders of their names; the names."""
    names = [f"lora-{seed}" for seed in range(num_loras)]
    for seed, name in enumerate(names):
        write_random_lora(folder / name, seed, model)
    return names
