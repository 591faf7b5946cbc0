"""The worker for PEFT adds adapters to the layers itself: they must be what PEFT's own loader makes of the files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from benchmarks.adapter_files import write_random_loras
from benchmarks.model import load
from benchmarks.peers.hf_worker import BASE, load_loras
from tests.conftest import TinyModel


def logits(model: Any, adapter_names: list[str]) -> torch.Tensor:
    ids = torch.arange(1, 6).repeat(len(adapter_names), 1)
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=ids, adapter_names=adapter_names).logits
    return out


# PEFT asks transformers for it.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_equal_those_of_the_loader_of_peft(tiny_model: TinyModel, tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "base")
    names = write_random_loras(tmp_path / "loras", 3, load(tmp_path / "base"))
    folders = [tmp_path / "loras" / name for name in names]
    expected = PeftModel.from_pretrained(copy.deepcopy(model), str(folders[0]), adapter_name=names[0])
    for folder in folders[1:]:
        expected.load_adapter(str(folder), adapter_name=folder.name)
    loaded = load_loras(copy.deepcopy(model), folders)
    rows = [*names, BASE]
    found = logits(loaded, rows)
    assert torch.equal(found, logits(expected.eval(), rows))
    assert len({tuple(row.flatten().tolist()) for row in found}) == len(rows)
    same = loaded.state_dict()
    assert same.keys() == expected.state_dict().keys()
    assert all(torch.equal(same[key], value) for key, value in expected.state_dict().items())
