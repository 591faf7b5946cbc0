"""A LoRA or DoRA merged into a base model gives PEFT's own logits, and a base model of its own."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from reft_interventions import base_model_spec, validate_for_base
from reft_interventions.errors import AdapterError, InterventionBaseMismatchError
from reft_interventions.merging import merge_adapter, merged_model_id
from reft_interventions.model_tree import fingerprint
from tests.adapters import load_adapter, save_adapter

INPUT_IDS = torch.tensor([[5, 17, 99, 3, 3, 64, 120]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=INPUT_IDS).logits


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_merged_model_has_the_logits_of_pefts(
    architecture: str, use_dora: bool, tiny_model: Any, tmp_path: Path
) -> None:
    base = tiny_model(architecture)
    targets = ["c_attn", "c_proj"] if architecture == "gpt2" else ["q_proj", "v_proj", "down_proj"]
    folder = save_adapter(base, tmp_path, use_dora=use_dora, target_modules=targets)
    expected = logits(load_adapter(base, folder))
    merged = merge_adapter(copy.deepcopy(base), folder)
    assert (logits(merged) - expected).abs().max() < 1e-4
    assert (expected - logits(base)).abs().max() > 0.1
    assert type(merged) is type(base)
    assert list(dict(merged.named_parameters())) == list(dict(base.named_parameters()))
    assert not any(parameter.requires_grad for parameter in merged.parameters())


def test_merged_model_is_another_base_model(tiny_model: Any, make_set: Any, tmp_path: Path) -> None:
    base = tiny_model("llama")
    merged = merge_adapter(copy.deepcopy(base), save_adapter(base, tmp_path))
    assert fingerprint(merged) != fingerprint(base)
    spec = base_model_spec(merged, "tiny+adapter")
    validate_for_base(make_set(merged), spec)
    with pytest.raises(InterventionBaseMismatchError):
        validate_for_base(make_set(base), spec)
    with pytest.raises(InterventionBaseMismatchError):
        validate_for_base(make_set(merged), base_model_spec(base, "tiny"))


def test_merged_model_is_named_after_both(tmp_path: Path) -> None:
    assert merged_model_id("tiny", tmp_path / "formal") == "tiny+formal"


def test_merge_refuses_an_adapter_of_another_width(tiny_model: Any, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model("llama"), tmp_path)
    with pytest.raises(AdapterError, match="does not fit the base model"):
        merge_adapter(copy.deepcopy(tiny_model("llama", hidden_size=16)), folder)


def test_merge_refuses_an_adapter_with_more_layers(tiny_model: Any, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model("llama"), tmp_path)
    with pytest.raises(AdapterError, match=r"12 tensors too many and lacks 0, for instance .*layers\.2"):
        merge_adapter(copy.deepcopy(tiny_model("llama", num_hidden_layers=2)), folder)


def test_merge_refuses_an_adapter_with_fewer_layers(tiny_model: Any, tmp_path: Path) -> None:
    folder = save_adapter(tiny_model("llama", num_hidden_layers=2), tmp_path)
    with pytest.raises(AdapterError, match="0 tensors too many and lacks 12"):
        merge_adapter(copy.deepcopy(tiny_model("llama")), folder)


def test_merge_refuses_an_adapter_of_another_architecture(tiny_model: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="does not fit the base model: Target modules"):
        merge_adapter(copy.deepcopy(tiny_model("gpt2")), save_adapter(tiny_model("llama"), tmp_path))


def test_merge_refuses_a_change_of_a_head_that_is_the_embedding(tiny_model: Any, tmp_path: Path) -> None:
    base = tiny_model("llama")
    with pytest.raises(AdapterError, match="one matrix in this model"):
        merge_adapter(copy.deepcopy(base), save_adapter(base, tmp_path, target_modules=["q_proj", "lm_head"]))


def test_merge_takes_a_change_of_a_head_of_its_own(tiny_model: Any, tmp_path: Path) -> None:
    base = tiny_model("qwen2")
    folder = save_adapter(base, tmp_path, target_modules=["q_proj", "lm_head"])
    expected = logits(load_adapter(base, folder))
    assert (logits(merge_adapter(copy.deepcopy(base), folder)) - expected).abs().max() < 1e-4


def test_merge_refuses_values_that_are_not_finite(tiny_model: Any, tmp_path: Path) -> None:
    base = tiny_model("llama")
    path = save_adapter(base, tmp_path) / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)
    with pytest.raises(AdapterError, match="NaNs detected"):
        merge_adapter(copy.deepcopy(base), path.parent)


def test_merge_refuses_prefix_tuning(tiny_model: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "PREFIX_TUNING"}))
    with pytest.raises(AdapterError, match=r"'PREFIX_TUNING': only LORA"):
        merge_adapter(tiny_model("llama"), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", None, "holds no adapter_config.json"),
        ("adapter_config.json", "{", "is not valid JSON"),
        ("adapter_config.json", "[]", "of the type None"),
        ("adapter_model.safetensors", None, "pickled adapters are not read"),
        ("adapter_model.safetensors", "version https://git-lfs", "is not a safetensors file"),
    ],
)
def test_merge_refuses_a_folder_that_is_no_adapter(
    name: str, content: str | None, reason: str, tiny_model: Any, tmp_path: Path
) -> None:
    folder = save_adapter(tiny_model("llama"), tmp_path)
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(AdapterError, match=reason) as caught:
        merge_adapter(tiny_model("llama"), folder)
    assert caught.value.param == "merge_lora"


def test_merge_without_peft_says_what_to_install(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_adapter(tiny_model("llama"), tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(AdapterError, match=r"pip install 'reft-serve\[lora\]'"):
        merge_adapter(tiny_model("llama"), folder)
