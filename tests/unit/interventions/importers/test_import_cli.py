"""`reft import` and `reft export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import reft_interventions
from reft_interventions.importers.cli import main_export, main_import

KEY = "layer_8_comp_block_output_unit_pos_nunit_1#0"
BASE = ("--base-model", "tiny", "--num-layers", "12")


def test_import_writes_a_file_and_says_what_it_read(
    write_folder: Callable[..., Path],
    loreft_state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, output = write_folder({KEY: loreft_state}), tmp_path / "mine.safetensors"
    arguments = [str(folder), *BASE, "--positions", "l2", "-o", str(output), "--license", "MIT", "--act", "relu"]
    assert main_import(arguments) == 0
    manifest = reft_interventions.load(output).manifest
    assert (manifest.name, manifest.license, manifest.training) == ("mine", "MIT", {"imported_from": "pyreft"})
    assert manifest.interventions[0].act == "relu"
    out = capsys.readouterr().out
    for text in ("pyreft", "tiny (hidden size 16, 12 layers, weights not checked)", "loreft", "l2", "sha256:", "floor"):
        assert text in out


def test_import_replaces_a_file_only_with_force(
    write_folder: Callable[..., Path],
    loreft_state: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_folder({KEY: loreft_state})
    monkeypatch.chdir(tmp_path)
    arguments = [str(folder), *BASE, "--positions", "0,1,-1"]
    assert main_import(arguments) == 0
    assert reft_interventions.load("checkpoint.safetensors").manifest.interventions[0].positions == (0, 1, -1)
    assert main_import(arguments) == 1
    assert "checkpoint.safetensors exists; --force replaces it" in capsys.readouterr().err
    assert main_import([*arguments, "--force"]) == 0


def test_missing_options_are_one_line_on_standard_error(
    write_folder: Callable[..., Path],
    loreft_state: dict[str, Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_folder({KEY: loreft_state})
    assert main_import([str(folder), "-o", str(tmp_path / "x.safetensors")]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("reft import: the checkpoint does not record everything; add: --positions")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "x.safetensors").exists()


def test_steering_vectors_from_the_command_line(tmp_path: Path) -> None:
    torch.save(torch.ones(12, 16), tmp_path / "vectors.pt")
    output = tmp_path / "out.safetensors"
    arguments = [str(tmp_path / "vectors.pt"), *BASE, "--layers", "3; 5", "--scale", "-2", "-o", str(output)]
    assert main_import(arguments) == 0
    one = reft_interventions.load(output)
    assert [spec.layer for spec in one.manifest.interventions] == [3, 5]
    assert one.manifest.num_parameter_groups == 1
    assert torch.equal(one.parameters[0]["vector"], torch.full((16,), -2.0))


def test_export_then_import_from_the_command_line(
    make_set: Callable[..., Any],
    tiny_model: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    one = make_set(tiny_model("llama"), name="mine")
    reft_interventions.save(one, tmp_path / "mine.safetensors")
    assert main_export([str(tmp_path / "mine.safetensors"), str(tmp_path / "out")]) == 0
    assert main_export([str(tmp_path / "mine.safetensors"), str(tmp_path / "out")]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main_import([str(tmp_path / "out"), "-o", str(tmp_path / "again.safetensors")]) == 0
    assert reft_interventions.load(tmp_path / "again.safetensors").content_hash == one.content_hash


@pytest.mark.parametrize("text", ["", "3-5", "a"])
def test_layers_that_can_not_be_read_are_wrong_usage(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main_import([str(tmp_path), "--layers", text])
    assert "no list of layers" in capsys.readouterr().err
