"""Imported checkpoints give the logits that pyreft itself computed (recorded by tests/pyreft/make_fixtures.py).

`make test-pyreft` makes the archives anew in pyreft's own environment and runs this file on them.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reft_interventions import InterventionSet
from reft_interventions.importers import ImportOptions, import_checkpoint
from tests.parity.recorded import Recorded, check_same

FIXTURES = Path(os.environ.get("REFT_TEST_PYREFT_FIXTURES") or Path(__file__).parents[1] / "fixtures" / "pyreft")
ARCHITECTURES = ("llama", "qwen2", "gpt2")
CLASSES = ("loreft", "noreft", "consreft", "lobireft", "direft", "nodireft")
TYING_AND_POSITIONS = (("tied", "f2"), ("tied", "l2"), ("tied", "f2+l3"), ("untied", "f2+l3"))
OTHERS = (
    "block_input", "mlp_input", "mlp_output", "attention_input", "attention_output", "path", "gelu", "addition",
    "subtraction", "replacement", "zero",
)  # fmt: skip
KEY = r"layer_(\d+)_comp_block_output_unit_pos_nunit_1#(\d)"  # as pyvene 0.1.8 spells it
SPELLINGS = {
    "repr": r"layer.\1.repr.block_output.unit.pos.nunit.1#\2",
    "comp": r"layer.\1.comp.block_output.unit.pos.nunit.1#\2",
    "underscores": r"layer_\1_comp_block_output_unit_pos_nunit_1#\2",
}

Unpack = Callable[[str], Recorded]


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """`unpack(arch)`: the model, its checkpoints and pyreft's logits."""
    unpacked: dict[str, Recorded] = {}

    def get(arch: str) -> Recorded:
        if arch not in unpacked:
            unpacked[arch] = Recorded.unpack(FIXTURES / f"{arch}.tar.xz", tmp_path_factory.mktemp(arch))
        return unpacked[arch]

    return get


def check(recorded: Recorded, case: str, one: InterventionSet) -> None:
    expected, unedited = recorded.logits[case], recorded.batched(recorded.prompts, None)
    check_same(recorded.batched(recorded.prompts, one), expected, unedited)
    check_same(recorded.alone(recorded.prompts, one), expected, unedited)


@pytest.mark.parametrize(("tying", "positions"), TYING_AND_POSITIONS)
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_imported_class_gives_pyrefts_logits(unpack: Unpack, arch: str, name: str, tying: str, positions: str) -> None:
    recorded = unpack(arch)
    one = recorded.import_checkpoint(f"{name}-{tying}", positions=positions).intervention_set
    assert {spec.formula for spec in one.manifest.interventions} == {name}
    parts = {"both"} if tying == "tied" else {"prefix", "suffix"}
    assert {spec.part for spec in one.manifest.interventions} == parts
    check(recorded, f"{name}-{tying}|{positions}", one)


@pytest.mark.parametrize("name", OTHERS)
def test_imported_component_or_constant_gives_pyrefts_logits(unpack: Unpack, name: str) -> None:
    act = "gelu" if name == "gelu" else None
    recorded = unpack("llama")
    one = recorded.import_checkpoint(name, positions="l2", act=act).intervention_set
    check(recorded, f"{name}|l2", one)


def respell(source: Path, target: Path, spelling: str, *, with_config: bool) -> Path:
    """The same checkpoint as another release of pyvene names its keys."""
    target.mkdir()
    for path in source.glob("intkey_*.bin"):
        name, num_keys = re.subn(KEY, spelling, path.name)
        assert num_keys == 1
        shutil.copy(path, target / name)
    if with_config:
        text = (source / "config.json").read_text(encoding="utf-8")
        (target / "config.json").write_text(re.sub(KEY, spelling, text), encoding="utf-8")
    return target


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("tying", ["tied", "untied"])
@pytest.mark.parametrize("name", CLASSES)
def test_imported_class_is_the_same_in_every_spelling_and_without_config(
    unpack: Unpack, tmp_path: Path, name: str, tying: str, spelling: str, with_config: bool
) -> None:
    recorded = unpack("llama")
    whole = recorded.import_checkpoint(f"{name}-{tying}", positions="f2+l3").intervention_set
    folder = respell(
        recorded.folder / f"{name}-{tying}", tmp_path / "other", SPELLINGS[spelling], with_config=with_config
    )
    options = ImportOptions(base_model="tiny", num_layers=3, positions="f2+l3", formula=None if with_config else name)
    one = import_checkpoint(folder, options).intervention_set
    assert one.manifest.interventions == whole.manifest.interventions
    for group, expected in zip(one.parameters, whole.parameters, strict=True):
        assert group.keys() == expected.keys()
        assert all(torch.equal(group[key], expected[key]) for key in group)
