"""Steering vectors, GGUF control vectors and stacked dictionaries."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from reft_interventions import InterventionSet
from reft_interventions.errors import InterventionImportError
from reft_interventions.importers import ImportOptions, import_checkpoint

HIDDEN_SIZE = 8
ROWS = torch.arange(1.0, 4 * HIDDEN_SIZE + 1).reshape(4, HIDDEN_SIZE)


def imported(path: Path, **options: object) -> InterventionSet:
    complete = ImportOptions(**{"base_model": "tiny", "num_layers": 4, **options})
    return import_checkpoint(path, complete).intervention_set


def vectors(one: InterventionSet) -> dict[int, Tensor]:
    specs = one.manifest.interventions
    assert {(spec.formula, spec.component, spec.positions) for spec in specs} == {("addition", "block_output", "all")}
    return {spec.layer: one.parameters[spec.parameters]["vector"] for spec in specs}


def write_gguf(path: Path, directions: dict[str, Tensor], architecture: str = "controlvector") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(directions))
    for name, vector in directions.items():
        writer.add_tensor(name, vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_control_vector_is_added_to_the_output_of_its_layer(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write_gguf(tmp_path / "happy.gguf", {f"direction.{i}": ROWS[i].to(dtype) for i in (1, 2, 3)})
    got = vectors(imported(path, scale=0.5))
    assert got.keys() == {1, 2, 3}
    assert all(torch.equal(got[layer], ROWS[layer] * 0.5) for layer in got)


def test_control_vector_of_chosen_layers(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "happy.gguf", {f"direction.{i}": ROWS[i] for i in (1, 2, 3)})
    assert vectors(imported(path, layers=(2,))).keys() == {2}
    with pytest.raises(InterventionImportError, match="no layer 0; it has 1, 2, 3"):
        imported(path, layers=(0,))


def test_gguf_of_something_else_is_refused(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "model.gguf", {"output.weight": ROWS[0]}, "llama")
    with pytest.raises(InterventionImportError, match="architecture 'llama', not a control vector"):
        imported(model)
    mixed = write_gguf(tmp_path / "mixed.gguf", {"direction.1": ROWS[0], "output.weight": ROWS[0]})
    with pytest.raises(InterventionImportError, match=r"'output\.weight' beside its directions"):
        imported(mixed)


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_truncated_gguf_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_gguf(tmp_path / "happy.gguf", {"direction.1": ROWS[0]})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InterventionImportError, match="not a whole GGUF file"):
        imported(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_one_row_per_layer(tmp_path: Path, suffix: str) -> None:
    rows = ROWS.clone()
    rows[1] = 0  # a layer that is not steered
    path = tmp_path / f"vectors{suffix}"
    save_file({"vectors": rows}, path) if suffix == ".safetensors" else torch.save(rows, path)
    got = vectors(imported(path))
    assert got.keys() == {0, 2, 3}
    assert torch.equal(got[3], ROWS[3])


@pytest.mark.parametrize("names", [(0, 2), ("0", "2"), ("layer_0", "layer_2"), ("model.layers.0", "model.layers.2")])
def test_mapping_from_layers(tmp_path: Path, names: tuple[object, object]) -> None:
    torch.save({names[0]: ROWS[0], names[1]: ROWS[2][None]}, tmp_path / "vectors.pt")
    got = vectors(imported(tmp_path / "vectors.pt"))
    assert got.keys() == {0, 2}
    assert torch.equal(got[2], ROWS[2])


def test_hidden_states_begin_with_the_embedding(tmp_path: Path) -> None:
    torch.save(torch.cat([ROWS, ROWS[:1] + 100]), tmp_path / "vectors.pt")
    with pytest.raises(InterventionImportError, match=r"--hidden-states \(there is one row more than layers"):
        imported(tmp_path / "vectors.pt")
    got = vectors(imported(tmp_path / "vectors.pt", is_hidden_states=True))
    assert got.keys() == {0, 1, 2, 3}
    assert torch.equal(got[0], ROWS[1])


def test_single_vector_needs_its_layer(tmp_path: Path) -> None:
    torch.save(ROWS[0], tmp_path / "vector.pt")
    with pytest.raises(InterventionImportError, match="--layers"):
        imported(tmp_path / "vector.pt")
    assert vectors(imported(tmp_path / "vector.pt", layers=(2,))).keys() == {2}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({0: ROWS[0], 1: ROWS[0][:4]}, "different sizes"),
        ({"left": ROWS[0], "right": ROWS[0]}, "names no single layer"),
        ({"layer_1": ROWS[0], "block_1": ROWS[0]}, "names no single layer"),
        (torch.zeros(4, HIDDEN_SIZE), "every vector is zero"),
        (torch.zeros(4, 2, 2), "neither rows of numbers"),
        ([1, 2], "neither rows of numbers"),
    ],
)
def test_vectors_that_mean_nothing_are_refused(tmp_path: Path, value: object, message: str) -> None:
    torch.save(value, tmp_path / "vectors.pt")
    with pytest.raises(InterventionImportError, match=message):
        imported(tmp_path / "vectors.pt")


def write_dictionary(folder: Path) -> Path:
    torch.save(ROWS, folder / "LsReFT_weight.pt")
    torch.save(torch.zeros(4), folder / "LsReFT_bias.pt")
    lines = [json.dumps({"concept_id": index, "concept": f"concept {index}"}) for index in range(4)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def test_concept_is_added_with_factor_and_activation(tmp_path: Path) -> None:
    folder = write_dictionary(tmp_path)
    one = imported(folder, concept=2, layers=(1,), scale=0.5, max_activation=4.0)
    assert torch.equal(vectors(one)[1], ROWS[2] * 2)
    assert one.manifest.description == "Concept: concept 2"
    assert one.manifest.interventions[0].layer == 1


def test_everything_that_a_dictionary_lacks_is_listed(tmp_path: Path) -> None:
    with pytest.raises(InterventionImportError) as caught:
        import_checkpoint(write_dictionary(tmp_path))
    for option in ("--concept", "--layers", "--scale", "--base-model"):
        assert option in caught.value.message


@pytest.mark.parametrize("concept", [-1, 4])
def test_concept_outside_the_dictionary_is_refused(tmp_path: Path, concept: int) -> None:
    with pytest.raises(InterventionImportError, match="4 concepts, counted from 0"):
        imported(write_dictionary(tmp_path), concept=concept, layers=(1,), scale=1.0)


def test_two_dictionaries_in_a_folder_are_not_guessed_between(tmp_path: Path) -> None:
    torch.save(ROWS, write_dictionary(tmp_path) / "DiffMean_weight.pt")
    with pytest.raises(InterventionImportError, match="no checkpoint that can be imported"):
        imported(tmp_path, concept=1, layers=(1,), scale=1.0)


def test_scale_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InterventionImportError, match="finite"):
        ImportOptions(scale=float("nan"))


def test_gguf_rows_are_not_views_of_the_file(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "happy.gguf", {"direction.1": ROWS[0]})
    one = imported(path)
    path.write_bytes(np.zeros(16, dtype=np.uint8).tobytes())
    assert torch.equal(vectors(one)[1], ROWS[0])
