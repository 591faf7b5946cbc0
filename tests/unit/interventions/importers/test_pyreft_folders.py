"""pyreft folders: keys, classes, what is asked for, and the traps."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reft_interventions import (
    InterventionError,
    base_model_spec,
    validate_for_base,
)
from reft_interventions.errors import (
    InterventionBaseMismatchError,
    InterventionImportError,
    InterventionManifestError,
    InterventionValueError,
)
from reft_interventions.importers import ImportOptions, import_checkpoint
from reft_interventions.importers.pyreft_keys import parse_key

FIXTURES = Path(__file__).parents[3] / "fixtures"
TYPE = "<class 'pyreft.interventions.LoreftIntervention'>"
KEY = "layer_8_comp_block_output_unit_pos_nunit_1#0"
SUFFIX_KEY = "layer_8_comp_block_output_unit_pos_nunit_1#1"
Options = Callable[..., ImportOptions]
WriteFolder = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("layer.0.repr.block_output.unit.pos.nunit.1#0", (0, "block_output", 0)),
        ("layer.8.comp.block_output.unit.pos.nunit.1#1", (8, "block_output", 1)),
        ("layer_31_comp_mlp_activation_unit_pos_nunit_1#0", (31, "mlp_activation", 0)),
        ("layer_3_comp_head_attention_value_output_unit_h_pos_nunit_1#0", (3, "head_attention_value_output", 0)),
        ("comp_model_layers[3]_output_unit_pos_nunit_1#0", (3, "block_output", 0)),
        ("comp.model.layers[3].output.unit.pos.nunit.1#0", (3, "block_output", 0)),
        ("layer.0.comp.model.layers[3].mlp.output.unit.pos.nunit.1#0", (3, "mlp_output", 0)),
        ("comp_model_layers[11]_self_attn_o_proj_input_unit_pos_nunit_1#1", (11, "attention_value_output", 1)),
        ("comp_transformer_h[2]_attn_c_proj_input_unit_pos_nunit_1#0", (2, "attention_value_output", 0)),
        ("comp_gpt_neox_layers[5]_attention_dense_input_unit_pos_nunit_1#0", (5, "attention_value_output", 0)),
        ("comp_model_layers[3]_self_attn_q_proj_output_unit_pos_nunit_1#0", (3, "query_output", 0)),
    ],
)
def test_key_of_every_generation_is_read(text: str, expected: tuple[int, str, int]) -> None:
    key = parse_key(text)
    assert (key.layer, key.component, key.ordinal) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer_8_block_output", "not a key"),
        ("layer_8_comp_block_output_unit_h_nunit_1#0", "only single positions"),
        ("layer_8_comp_block_output_unit_pos_nunit_4#0", "groups of 4"),
        ("comp_model_embed_tokens_output_unit_pos_nunit_1#0", "none of the places"),
    ],
)
def test_key_that_means_nothing_here_is_refused(text: str, message: str) -> None:
    with pytest.raises(InterventionImportError, match=message):
        parse_key(text)


def test_checkpoint_that_someone_trained_imports() -> None:
    options = ImportOptions(base_model="Qwen/Qwen2.5-1.5B-Instruct", num_layers=28, positions="l1")
    imported = import_checkpoint(FIXTURES / "pyreft-qwen2.5-1.5b-loreft", options)
    (spec,) = imported.intervention_set.manifest.interventions
    assert (spec.layer, spec.component, spec.formula, spec.low_rank_dimension) == (8, "block_output", "loreft", 4)
    assert (spec.short_prompt, spec.part, spec.act) == ("floor", "both", "linear")
    assert imported.intervention_set.manifest.base_model.hidden_size == 1536
    assert imported.intervention_set.parameters[0]["learned_source_weight"].dtype == torch.bfloat16


def test_everything_missing_is_listed_at_once(write_folder: WriteFolder, linear_state: dict[str, Tensor]) -> None:
    folder = write_folder({KEY: linear_state, SUFFIX_KEY: linear_state})
    with pytest.raises(InterventionImportError) as caught:
        import_checkpoint(folder)
    assert "--formula" in caught.value.message
    assert "noreft and nodireft" in caught.value.message
    assert "--positions" in caught.value.message
    assert "--base-model" in caught.value.message


def test_untied_ends_are_asked_for_as_such(write_folder: WriteFolder, loreft_state: dict[str, Tensor]) -> None:
    folder = write_folder({KEY: loreft_state, SUFFIX_KEY: loreft_state}, [TYPE, TYPE])
    with pytest.raises(InterventionImportError, match=r"fN\+lM: prefix and suffix have weights of their own"):
        import_checkpoint(folder, ImportOptions(base_model="tiny", num_layers=12))


def test_untied_ends_with_one_end_named_are_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({KEY: loreft_state, SUFFIX_KEY: loreft_state}, [TYPE, TYPE])
    with pytest.raises(InterventionManifestError, match=r"fN\+lM"):
        import_checkpoint(folder, options(positions="l2"))


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("prefix_key", "suffix_key"),
    [
        (KEY, SUFFIX_KEY),
        ("layer.8.comp.block_output.unit.pos.nunit.1#0", "layer.8.comp.block_output.unit.pos.nunit.1#1"),
        ("layer.8.repr.block_output.unit.pos.nunit.1#0", "layer.8.repr.block_output.unit.pos.nunit.1#1"),
    ],
)
def test_untied_folder_of_every_generation_imports(
    write_folder: WriteFolder,
    loreft_state: dict[str, Tensor],
    options: Options,
    prefix_key: str,
    suffix_key: str,
    with_config: bool,
) -> None:
    other = {**loreft_state, "bias": loreft_state["bias"] + 1}
    folder = write_folder({prefix_key: loreft_state, suffix_key: other}, [TYPE, TYPE] if with_config else None)
    one = import_checkpoint(folder, options()).intervention_set
    assert [(spec.part, spec.parameters) for spec in one.manifest.interventions] == [("prefix", 0), ("suffix", 1)]
    assert torch.equal(one.parameters[0]["learned_source_bias"], loreft_state["bias"])
    assert torch.equal(one.parameters[1]["learned_source_bias"], other["bias"])


def test_trainers_checkpoint_folder_is_found(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options, tmp_path: Path
) -> None:
    nested = tmp_path / "checkpoint-100" / "intervenable_model"
    shutil.copytree(write_folder({KEY: loreft_state}), nested)
    (nested.parent / "config.json").write_text('{"model_type": "llama"}')
    one = import_checkpoint(nested.parent, options()).intervention_set
    assert one.manifest.interventions[0].formula == "loreft"


@pytest.mark.parametrize(
    ("type_text", "formula"),
    [
        ("<class 'pyreft.reft.interventions.NoreftIntervention'>", "noreft"),
        ("<class '__main__.NodireftIntervention'>", "nodireft"),
        ("<class 'pyreft.interventions.ConditionedSourceLowRankIntervention'>", "noreft"),
    ],
)
def test_class_is_told_by_its_last_word(
    write_folder: WriteFolder, linear_state: dict[str, Tensor], options: Options, type_text: str, formula: str
) -> None:
    one = import_checkpoint(write_folder({KEY: linear_state}, [type_text]), options()).intervention_set
    assert one.manifest.interventions[0].formula == formula
    assert ("proj_bias" in one.parameters[0]) is (formula == "noreft")  # saved by both, used by one


def test_loreft_of_the_first_releases_is_rebuilt(
    write_folder: WriteFolder, linear_state: dict[str, Tensor], options: Options
) -> None:
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(2, 16, bias=False))
    state = {name: linear_state[name] for name in ("learned_source.weight", "learned_source.bias")}
    state |= {f"rotate_layer.{name}": value for name, value in layer.state_dict().items()}
    old_type = "<class 'pyreft.interventions.ConditionedSourceLowRankRotatedSpaceIntervention'>"
    one = import_checkpoint(write_folder({KEY: state}, [old_type]), options()).intervention_set
    assert one.manifest.interventions[0].formula == "loreft"
    torch.testing.assert_close(one.parameters[0]["rotate_layer"], layer.weight.detach(), atol=1e-6, rtol=0)


def test_config_with_an_unknown_class_is_refused_by_name(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({KEY: loreft_state}, ["<class 'os.system'>"])
    with pytest.raises(InterventionImportError, match="'system', which has no equal here"):
        import_checkpoint(folder, options())


@pytest.mark.parametrize(
    "config", ["{", '{"intervention_types": 3}', '{"intervention_types": ["a"], "sorted_keys": ["b", "c", "d"]}']
)
def test_config_that_is_broken_is_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options, config: str
) -> None:
    folder = write_folder({KEY: loreft_state, SUFFIX_KEY: loreft_state})
    (folder / "config.json").write_text(config)
    with pytest.raises(InterventionImportError, match=r"config\.json|not a key"):
        import_checkpoint(folder, options())


def test_third_intervention_at_one_place_is_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({KEY[:-1] + ordinal: loreft_state for ordinal in "012"})
    with pytest.raises(InterventionImportError, match="3 interventions"):
        import_checkpoint(folder, options())


def test_equal_weights_at_two_layers_are_stored_once(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({KEY: loreft_state, KEY.replace("8", "9"): loreft_state})
    one = import_checkpoint(folder, options()).intervention_set
    assert [(spec.layer, spec.parameters) for spec in one.manifest.interventions] == [(8, 0), (9, 0)]


def test_wrong_base_model_is_named_as_such(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    folder = write_folder({KEY: loreft_state}, [TYPE])
    with pytest.raises(InterventionBaseMismatchError, match="hidden size 16; model has 32"):
        import_checkpoint(folder, ImportOptions(base_model=str(tmp_path / "model"), positions="l1"))


def test_layer_that_the_base_model_lacks_is_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    with pytest.raises(InterventionManifestError, match="layer 8 is outside"):
        import_checkpoint(write_folder({KEY: loreft_state}), options(num_layers=8))


def test_folder_as_base_model_gives_sizes_and_fingerprint(
    write_folder: WriteFolder, tmp_path: Path, tiny_model: Callable[..., Any]
) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "model")
    rotation, _ = torch.linalg.qr(torch.randn(32, 2))
    state = {"weight": torch.randn(2, 32), "bias": torch.randn(2), "rotate_layer": rotation}
    folder = write_folder({KEY.replace("8", "1"): state}, [TYPE])
    options = ImportOptions(base_model=str(tmp_path / "model"), positions="l1")
    one = import_checkpoint(folder, options).intervention_set
    validate_for_base(one, base_model_spec(model, "model"))
    assert one.manifest.base_model.fingerprint == base_model_spec(model, "model").fingerprint


def test_lfs_pointer_is_named_as_such(write_folder: WriteFolder, options: Options) -> None:
    folder = write_folder({})
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 39533\n"
    (folder / f"intkey_{KEY}.bin").write_text(pointer)
    with pytest.raises(InterventionImportError, match="git-LFS pointer"):
        import_checkpoint(folder, options())


class Hostile:
    """Unpickled with the full unpickler, it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickle_that_executes_code_is_refused(
    write_folder: WriteFolder, options: Options, tmp_path: Path, is_zip: bool
) -> None:
    folder, mark = write_folder({}), tmp_path / "executed"
    target = folder / f"intkey_{KEY}.bin"
    if is_zip:
        torch.save({"weight": Hostile(mark)}, target)
    else:
        target.write_bytes(pickle.dumps({"weight": Hostile(mark)}))
    with pytest.raises(InterventionImportError, match="could execute code"):
        import_checkpoint(folder, options())
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a zip", b"\x80\x02half a pickle", b"plain text"])
def test_damaged_file_is_refused(write_folder: WriteFolder, options: Options, content: bytes) -> None:
    folder = write_folder({})
    (folder / f"intkey_{KEY}.bin").write_bytes(content)
    with pytest.raises(InterventionImportError):
        import_checkpoint(folder, options())


def test_missing_file_is_named(write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options) -> None:
    folder = write_folder({KEY: loreft_state}, [TYPE])
    (folder / f"intkey_{KEY}.bin").unlink()
    with pytest.raises(InterventionImportError, match="can't be read"):
        import_checkpoint(folder, options())


def test_collapsed_rotation_is_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    loreft_state["rotate_layer"] = torch.zeros_like(loreft_state["rotate_layer"])
    with pytest.raises(InterventionValueError, match=r"collapsed.*Weight decay"):
        import_checkpoint(write_folder({KEY: loreft_state}), options(allow_non_orthonormal=True))


def test_parametrization_under_weight_decay_is_refused_as_collapsed(
    write_folder: WriteFolder, options: Options
) -> None:
    layer = torch.nn.utils.parametrizations.orthogonal(torch.nn.Linear(2, 16, bias=False))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.1)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {f"rotate_layer.{name}": value for name, value in layer.state_dict().items()}
    folder = write_folder({KEY: {**state, "learned_source": torch.ones(2)}})
    with pytest.raises(InterventionValueError, match="collapsed"):
        import_checkpoint(folder, options(formula="consreft"))


@pytest.mark.parametrize(
    ("formula", "stored_as"),
    [("loreft", "noreft"), ("consreft", "noreft"), ("direft", "nodireft"), ("lobireft", "nodireft")],
)
def test_rotation_that_is_not_orthonormal_keeps_its_function_on_request(
    write_folder: WriteFolder,
    loreft_state: dict[str, Tensor],
    linear_state: dict[str, Tensor],
    options: Options,
    formula: str,
    stored_as: str,
) -> None:
    rotation = loreft_state["rotate_layer"] * 1.1
    linear = {name: linear_state[name] for name in ("learned_source.weight", "learned_source.bias")}
    state = {"rotate_layer": rotation} | (
        linear if formula in ("loreft", "direft") else {"learned_source": torch.ones(2)}
    )
    folder = write_folder({KEY: state})
    with pytest.raises(InterventionImportError, match="--allow-non-orthonormal"):
        import_checkpoint(folder, options(formula=formula))
    imported = import_checkpoint(folder, options(formula=formula, allow_non_orthonormal=True))
    spec = imported.intervention_set.manifest.interventions[0]
    assert spec.formula == stored_as
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    weight = linear["learned_source.weight"] if formula in ("loreft", "direft") else torch.zeros(2, 16)
    bias = linear["learned_source.bias"] if formula in ("loreft", "direft") else torch.ones(2)
    target = rows @ rotation if formula in ("loreft", "consreft") else 0.0
    expected = rows + (rows @ weight.T + bias - target) @ rotation.T
    got = spec.formula_object.edit(rows, imported.intervention_set.parameters[0])
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_short_prompts_follow_pyrefts_rule(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options, length: int
) -> None:
    one = import_checkpoint(write_folder({KEY: loreft_state}), options()).intervention_set
    (spec,) = one.manifest.interventions
    edited = [i for first, last in spec.intervention_positions.intervals(length) for i in range(first, last)]
    half = min(length // 2, 2)
    assert edited == [*range(half), *range(length - half, length)]


@pytest.mark.parametrize(
    ("type_text", "formula", "expected"),
    [
        ("AdditionIntervention", "addition", {"vector": [1.0, 2.0, 0.0]}),
        ("SubtractionIntervention", "addition", {"vector": [-1.0, -2.0, 0.0]}),
        ("VanillaIntervention", "scale_shift", {"scale": [0.0, 0.0, 1.0], "shift": [1.0, 2.0, 0.0]}),
    ],
)
def test_constant_row_is_limited_to_its_interchange_dimension(
    write_folder: WriteFolder, options: Options, type_text: str, formula: str, expected: dict[str, list[float]]
) -> None:
    state = {"source_representation": torch.tensor([[1.0, 2.0, 3.0]]), "interchange_dim": torch.tensor(2)}
    folder = write_folder({KEY: state}, [f"<class 'pyvene.models.interventions.{type_text}'>"])
    one = import_checkpoint(folder, options(positions="l1")).intervention_set
    assert one.manifest.interventions[0].formula == formula
    assert {name: tensor.tolist() for name, tensor in one.parameters[0].items()} == expected


def test_interchange_without_source_becomes_dii(write_folder: WriteFolder, options: Options, rotation: Tensor) -> None:
    folder = write_folder({KEY: {"rotate_layer": rotation}}, ["pyvene.models.LowRankRotatedSpaceIntervention"])
    one = import_checkpoint(folder, options(positions="l1")).intervention_set
    assert one.manifest.interventions[0].formula == "dii"
    assert one.parameters[0].keys() == {"rotate_layer"}


def test_vanilla_without_a_stored_row_is_refused(write_folder: WriteFolder, options: Options) -> None:
    folder = write_folder({KEY: {}}, ["<class 'pyvene.models.interventions.VanillaIntervention'>"])
    with pytest.raises(InterventionImportError, match="no source_representation"):
        import_checkpoint(folder, options())


def test_tensor_that_the_class_does_not_have_is_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({KEY: {**loreft_state, "gate": torch.ones(1)}}, [TYPE])
    with pytest.raises(InterventionImportError, match="holds gate"):
        import_checkpoint(folder, options())


def test_head_is_asked_for_and_recorded(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({"layer_3_comp_head_attention_value_output_unit_h_pos_nunit_1#0": loreft_state})
    with pytest.raises(InterventionImportError, match=r"--hidden-size .*--head"):
        import_checkpoint(folder, options())
    one = import_checkpoint(folder, options(head=2, hidden_size=64)).intervention_set
    (spec,) = one.manifest.interventions
    assert (spec.head, spec.width, one.manifest.base_model.hidden_size) == (2, 16, 64)


def test_nothing_that_we_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterventionError, match="does not exist"):
        import_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InterventionError, match="no checkpoint that can be imported"):
        import_checkpoint(tmp_path)


def test_unicode_and_duplicate_keys_in_config_are_refused(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({KEY: loreft_state}, [TYPE])
    config = json.loads((folder / "config.json").read_text())
    text = json.dumps(config)[:-1] + ', "sorted_keys": []}'
    (folder / "config.json").write_text(text)
    with pytest.raises(InterventionImportError, match="same key twice"):
        import_checkpoint(folder, options())


def partitioned(partition: object) -> list[list[object]]:
    return [[8, "block_output", "pos", 1, 2, None, None, partition, None, None, None, None, None]]


def test_subspace_partition_gets_names(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options
) -> None:
    types = ["<class '__main__.SubloreftIntervention'>"]
    folder = write_folder({KEY: loreft_state}, types, representations=partitioned([[0, 1], [1, 2]]))
    one = import_checkpoint(folder, options()).intervention_set
    assert one.manifest.subspaces == {"0": (0,), "1": (1,)}


@pytest.mark.parametrize("partition", [[], ["a"], 3, [[0.5, 2]]])
def test_subspace_partition_that_says_nothing_is_left_out(
    write_folder: WriteFolder, loreft_state: dict[str, Tensor], options: Options, partition: object
) -> None:
    folder = write_folder({KEY: loreft_state}, [TYPE], representations=partitioned(partition))
    imported = import_checkpoint(folder, options())
    assert imported.intervention_set.manifest.subspaces == {}
    assert any("partition is left out" in note for note in imported.notes) is bool(partition)


def test_config_of_pyvenes_first_releases_is_read(
    write_folder: WriteFolder, linear_state: dict[str, Tensor], options: Options
) -> None:
    folder = write_folder({"layer.8.repr.block_output.unit.pos.nunit.1#0": linear_state})
    config = {
        "sorted_keys": ["layer.8.repr.block_output.unit.pos.nunit.1#0"],
        "intervenable_interventions_type": ["<class '__main__.NodireftIntervention'>"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    one = import_checkpoint(folder, options()).intervention_set
    assert one.manifest.interventions[0].formula == "nodireft"
