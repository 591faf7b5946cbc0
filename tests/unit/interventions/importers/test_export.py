"""Exporting to pyreft's folders, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.parametrizations import orthogonal

from reft_interventions import InterventionSet
from reft_interventions.errors import InterventionExportError, InterventionImportError
from reft_interventions.exporters import export_pyreft
from reft_interventions.importers import ImportOptions, import_checkpoint

CLASSES = ("loreft", "noreft", "consreft", "lobireft", "direft", "nodireft", "addition", "dii")
TRAINED = Path(__file__).parents[3] / "fixtures" / "pyreft-qwen2.5-1.5b-loreft"
MakeSet = Callable[..., InterventionSet]


@pytest.fixture
def make(make_set: MakeSet, tiny_model: Callable[..., Any]) -> Callable[..., InterventionSet]:
    def make_one(*specs: Mapping[str, Any], keeps_source: bool = False, **more: Any) -> InterventionSet:
        one = make_set(tiny_model("llama"), *specs, **more)
        if {spec.formula for spec in one.manifest.interventions} != {"dii"} or keeps_source:
            return one
        # pyvene's files hold no source: it comes with each run, as it may with us.
        return InterventionSet.create(
            one.manifest, [{"rotate_layer": group["rotate_layer"]} for group in one.parameters]
        )

    return make_one


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("formula", CLASSES)
def test_round_trip_gives_the_same_set(make: MakeSet, tmp_path: Path, formula: str, dtype: torch.dtype) -> None:
    one = make(
        {"formula": formula, "layer": 3, "positions": "f2+l3", "part": "suffix", "suffix_offset": 1},
        {"formula": formula, "layer": 3, "positions": "f2+l3", "part": "prefix", "suffix_offset": 1},
        {"formula": formula, "layer": 0, "component": "mlp_output", "positions": "prompt"},
        {"formula": formula, "layer": 1, "positions": "f2+l3", "parameters": 0},
        dtype=dtype,
    )
    export_pyreft(one, tmp_path / "out")
    again = import_checkpoint(tmp_path / "out").intervention_set
    assert again.manifest == one.manifest
    assert again.content_hash == one.content_hash


def test_checkpoint_that_someone_trained_is_written_back_as_it_was(tmp_path: Path) -> None:
    options = ImportOptions(base_model="Qwen/Qwen2.5-1.5B-Instruct", num_layers=28, positions="l1")
    one = import_checkpoint(TRAINED, options).intervention_set
    export_pyreft(one, tmp_path / "out")
    assert import_checkpoint(tmp_path / "out").intervention_set.content_hash == one.content_hash
    (trained,) = TRAINED.glob("*.bin")
    before, after = (torch.load(path, weights_only=True) for path in (trained, tmp_path / "out" / trained.name))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_wide_rows_and_replacement_round_trip(make: MakeSet, tmp_path: Path) -> None:
    one = make(
        {"component": "mlp_activation", "width": 64},
        {"formula": "scale_shift", "layer": 2},
    )
    groups = [dict(group) for group in one.parameters]
    groups[1]["scale"] = torch.zeros(32)
    replaced = InterventionSet.create(one.manifest, groups)
    export_pyreft(replaced, tmp_path / "out")
    assert import_checkpoint(tmp_path / "out").intervention_set.content_hash == replaced.content_hash
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["intervention_dimensions"] == [64, 32]


@pytest.mark.parametrize("formula", ["consreft", "lobireft", "direft", "dii"])
def test_torchs_own_parametrization_loads_the_export(make: MakeSet, tmp_path: Path, formula: str) -> None:
    one = make({"formula": formula})
    export_pyreft(one, tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.bin")
    prefix = "rotate_layer."
    state = {name: value for name, value in torch.load(path, weights_only=True).items() if name.startswith(prefix)}
    layer = orthogonal(torch.nn.Linear(4, 32, bias=False))
    layer.load_state_dict({name.removeprefix(prefix): value for name, value in state.items()})
    assert torch.equal(layer.weight.detach(), one.parameters[0]["rotate_layer"])
    base = layer.parametrizations.weight[0].base
    assert (base.T @ base - torch.eye(32)).abs().max() < 1e-5


def test_config_names_prefixes_before_suffixes(make: MakeSet, tmp_path: Path) -> None:
    parts = [{"layer": layer, "part": part} for layer in (0, 2) for part in ("prefix", "suffix")]
    export_pyreft(make(*parts), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [key.split("_")[1] + key[-2:] for key in config["sorted_keys"]] == ["0#0", "2#0", "0#1", "2#1"]
    assert config["intervention_types"] == ["<class 'pyreft.interventions.LoreftIntervention'>"] * 4
    assert all(len(row) == 14 for row in config["representations"])


def test_without_our_manifest_the_folder_is_pyrefts(make: MakeSet, tmp_path: Path) -> None:
    one = make({"positions": "f1+l1", "short_prompt": "floor"})
    export_pyreft(one, tmp_path / "out")
    (tmp_path / "out" / "reft_manifest.json").unlink()
    with pytest.raises(InterventionImportError, match="--positions"):
        import_checkpoint(tmp_path / "out")
    again = import_checkpoint(tmp_path / "out", ImportOptions(base_model="tiny", num_layers=4, positions="f1+l1"))
    assert again.intervention_set.manifest.interventions == one.manifest.interventions
    assert torch.equal(again.intervention_set.parameters[0]["rotate_layer"], one.parameters[0]["rotate_layer"])


def test_options_that_the_folder_answers_are_refused(make: MakeSet, tmp_path: Path) -> None:
    export_pyreft(make(), tmp_path / "out")
    with pytest.raises(InterventionImportError, match="records positions itself"):
        import_checkpoint(tmp_path / "out", ImportOptions(positions="l1"))
    renamed = import_checkpoint(tmp_path / "out", ImportOptions(name="other")).intervention_set
    assert renamed.manifest.name == "other"


def test_tied_weights_that_pyreft_trained_apart_are_noticed(make: MakeSet, tmp_path: Path) -> None:
    export_pyreft(make({"layer": 0}, {"layer": 1, "parameters": 0}), tmp_path / "out")
    path = next((tmp_path / "out").glob("intkey_layer_1*"))
    state = torch.load(path, weights_only=True)
    torch.save({**state, "bias": state["bias"] + 1}, path)
    with pytest.raises(InterventionImportError, match="ties layer 1 block_output"):
        import_checkpoint(tmp_path / "out")


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([{"formula": "scale_shift"}], "no class that scales"),
        ([{"formula": "mlp"}], "no class for mlp"),
        ([{"act": "relu"}], "don't record the activation 'relu'"),
        ([{"positions": "generated"}], "can't edit generated tokens"),
        ([{"component": "head_query_output", "head": 1, "width": 8}], "which head"),
        ([{"part": "prefix"}], "edits one end alone"),
        ([{"positions": "f2"}, {"positions": "l2"}], "not the prefix and the suffix of one rule"),
    ],
)
def test_set_that_pyreft_can_not_express_is_refused(
    make: MakeSet, tmp_path: Path, specs: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(InterventionExportError, match=message):
        export_pyreft(make(*specs), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_that_is_not_empty_is_left_alone(make: MakeSet, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InterventionExportError, match="not empty"):
        export_pyreft(make(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
