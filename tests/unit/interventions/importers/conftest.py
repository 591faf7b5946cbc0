"""Folders as pyreft writes them, with states that the test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from reft_interventions.importers import ImportOptions

WriteFolder = Callable[..., Path]
HIDDEN_SIZE = 16
RANK = 2


@pytest.fixture
def options() -> Callable[..., ImportOptions]:
    """`options(**more)`: everything a pyreft folder needs."""

    def make(**more: object) -> ImportOptions:
        return ImportOptions(**{"base_model": "tiny", "num_layers": 12, "positions": "f2+l2", **more})

    return make


@pytest.fixture
def rotation() -> Tensor:
    """`[HIDDEN_SIZE, RANK]`, orthonormal."""
    columns, _ = torch.linalg.qr(torch.randn(HIDDEN_SIZE, RANK, generator=torch.Generator().manual_seed(0)))
    return columns


@pytest.fixture
def loreft_state(rotation: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "weight": torch.randn(RANK, HIDDEN_SIZE, generator=generator).to(torch.bfloat16),
        "bias": torch.randn(RANK, generator=generator).to(torch.bfloat16),
        "rotate_layer": rotation,
    }


@pytest.fixture
def linear_state() -> dict[str, Tensor]:
    """W and b as every class but LoReFT names them, and a projection."""
    generator = torch.Generator().manual_seed(2)
    return {
        "learned_source.weight": torch.randn(RANK, HIDDEN_SIZE, generator=generator),
        "learned_source.bias": torch.randn(RANK, generator=generator),
        "proj_layer.weight": torch.randn(RANK, HIDDEN_SIZE, generator=generator),
        "proj_layer.bias": torch.randn(RANK, generator=generator),
        "embed_dim": torch.tensor(HIDDEN_SIZE),
        "interchange_dim": torch.tensor(HIDDEN_SIZE),
    }


@pytest.fixture
def write_folder(tmp_path: Path) -> WriteFolder:
    """`write_folder({key: state}, types=None, **config)`: with a `config.json` where types are given."""

    def write(
        states: Mapping[str, Mapping[str, Tensor]], types: list[str] | str | None = None, **config: object
    ) -> Path:
        folder = tmp_path / "checkpoint"
        folder.mkdir(exist_ok=True)
        for key, state in states.items():
            torch.save(dict(state), folder / f"intkey_{key}.bin")
        if types is not None:
            written = {"sorted_keys": list(states), "intervention_types": types, **config}
            (folder / "config.json").write_text(json.dumps(written))
        return folder

    return write
