"""pyreft loads what `reft export` writes, and computes our logits. Run by `make test-pyreft`, not by `make test`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reft_interventions import BaseModelRef, InterventionSet, InterventionSpec, Manifest
from reft_interventions.exporters import export_pyreft
from reft_interventions.formulas import FORMULAS
from tests.parity.recorded import Recorded, check_same

ARCHIVES = Path(os.environ["REFT_TEST_PYREFT_FIXTURES"])
PYTHON = os.environ["REFT_TEST_PYREFT_PYTHON"]
SCRIPT = Path(__file__).parent / "load_exports.py"
EXPORTABLE = ("loreft", "noreft", "consreft", "lobireft", "direft", "nodireft", "addition")


def random_set(formula_id: str, positions: str, *, is_tied: bool) -> InterventionSet:
    formula = FORMULAS[formula_id]
    rank = 3 if formula.has_low_rank else 0
    ends = ("both",) if is_tied else ("prefix", "suffix")
    sites = [(layer, part) for layer in (0, 2) for part in ends]
    specs = tuple(
        InterventionSpec(layer=layer, component="block_output", formula=formula_id, low_rank_dimension=rank,
                         positions=positions, part=part, short_prompt="floor", parameters=index)
        for index, (layer, part) in enumerate(sites)
    )  # fmt: skip
    manifest = Manifest(base_model=BaseModelRef(id="tiny", hidden_size=32, num_layers=3), interventions=specs)
    generator = torch.Generator().manual_seed(3)
    groups = []
    for _ in specs:
        group = formula.initial_parameters(32, rank, generator)
        noisy = {name: value + torch.randn(value.shape, generator=generator) * 0.4 for name, value in group.items()}
        groups.append({name: group[name] if name == "rotate_layer" else noisy[name] for name in group})
    return InterventionSet.create(manifest, groups)


@pytest.mark.parametrize("arch", ["llama", "qwen2", "gpt2"])
def test_pyreft_loads_our_export_and_computes_our_logits(tmp_path: Path, arch: str) -> None:
    recorded = Recorded.unpack(ARCHIVES / f"{arch}.tar.xz", tmp_path)
    sets, cases = {}, {}
    for formula_id in EXPORTABLE:
        for positions, is_tied in (("f2+l3", True), ("f2+l3", False), ("l2", True)):
            name = f"exported-{formula_id}-{positions}-{'tied' if is_tied else 'untied'}"
            sets[name] = random_set(formula_id, positions, is_tied=is_tied)
            export_pyreft(sets[name], tmp_path / name)
            cases[name] = (positions, is_tied)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    subprocess.run([PYTHON, str(SCRIPT), str(tmp_path)], check=True, timeout=300)
    loaded = load_file(tmp_path / "loaded.safetensors")
    unedited = recorded.batched(recorded.prompts, None)
    assert loaded.keys() == sets.keys()
    for name, one in sets.items():
        check_same(recorded.batched(recorded.prompts, one), loaded[name], unedited)
