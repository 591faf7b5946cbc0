"""Imported folders of the `adapters` library give its own logits, as tests/pyreft/make_adapter_fixtures.py saw them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reft_interventions import InterventionError
from tests.parity.recorded import Recorded, check_same

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "adapters" / "llama.tar.xz"
NUM_BATCHED = 3  # prompts that were recorded as one batch
NUM_LONG = 2  # of them long enough for both ends


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded.unpack(ARCHIVE, tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize(
    ("name", "formula", "positions"),
    [
        ("loreft", "loreft", {"f2+l3"}),
        ("loreft-prefix", "loreft", {(0, 1)}),
        ("noreft-tied", "noreft", {(0, 1, -2, -1)}),
        ("direft-suffix", "nodireft", {(-2, -1)}),
    ],
)
def test_imported_adapter_gives_the_librarys_logits(
    recorded: Recorded, name: str, formula: str, positions: set[object]
) -> None:
    chosen = None if formula == "loreft" else formula
    imported = recorded.import_checkpoint(name, formula=chosen)
    one = imported.intervention_set
    assert {spec.formula for spec in one.manifest.interventions} == {formula}
    assert {spec.positions for spec in one.manifest.interventions} == positions
    prompts, unedited = recorded.prompts[:NUM_BATCHED], recorded.batched(recorded.prompts, None)
    size = sum(len(prompt) for prompt in prompts[: NUM_LONG if name == "loreft" else NUM_BATCHED])
    check_same(recorded.batched(prompts, one)[:size], recorded.logits[f"{name}|long"][:size], unedited[:size])
    if name != "loreft":  # untied ends overlap there on short prompts, and are halved here: said in a note
        check_same(recorded.alone(recorded.prompts, one), recorded.logits[f"{name}|alone"], unedited)
    assert any("shorter than 6 tokens" in note for note in imported.notes) is (name == "loreft")


def test_direft_or_noreft_is_asked_for(recorded: Recorded) -> None:
    with pytest.raises(InterventionError, match=r"--formula \(adapter_config.json does not say"):
        recorded.import_checkpoint("direft-suffix")


def test_act_is_read(recorded: Recorded) -> None:
    one = recorded.import_checkpoint("direft-suffix", formula="nodireft").intervention_set
    (spec,) = one.manifest.interventions
    assert (spec.act, spec.layer, spec.component) == ("relu", 1, "block_output")
    assert torch.equal(one.parameters[0]["proj_weight"], one.parameters[0]["proj_weight"].to(torch.float32))
