"""Folded edits: scaling, moving, counting bytes, digests; and the identity of folded sets."""

from __future__ import annotations

import pytest
import torch

from reft_interventions import InterventionSet
from reft_interventions.columns_edit import ColumnsEdit
from reft_interventions.folding import ActLowRankEdit, ElementwiseEdit, LowRankEdit, MlpEdit
from reft_interventions.intervention_set import edit_digest

RANK, SIZE = 3, 8


def low_rank(seed: int = 0) -> LowRankEdit:
    torch.manual_seed(seed)
    return LowRankEdit(torch.randn(RANK, SIZE), torch.randn(RANK), torch.randn(RANK, SIZE))


def act_low_rank(act: str = "relu", with_target: bool = True) -> ActLowRankEdit:
    torch.manual_seed(1)
    edit = ActLowRankEdit(torch.randn(RANK, SIZE), torch.randn(RANK), torch.randn(RANK, SIZE), act)
    if not with_target:
        return edit
    return ActLowRankEdit(edit.source, edit.source_bias, edit.up, act, torch.randn(RANK, SIZE), torch.randn(RANK))


def elementwise() -> ElementwiseEdit:
    torch.manual_seed(2)
    return ElementwiseEdit(torch.randn(SIZE), torch.randn(SIZE))


def mlp(row_factor: float) -> MlpEdit:
    torch.manual_seed(3)
    weights = (torch.randn(RANK, SIZE), torch.randn(RANK), torch.randn(RANK, SIZE), torch.randn(SIZE))
    return MlpEdit(*weights, "gelu", row_factor)


def columns() -> ColumnsEdit:
    torch.manual_seed(4)
    return ColumnsEdit(LowRankEdit(torch.randn(RANK, 3), torch.randn(RANK), torch.randn(RANK, 3)), 2, 5)


EDITS = {
    "low_rank": low_rank(),
    "act": act_low_rank(),
    "act_without_target": act_low_rank(with_target=False),
    "elementwise": elementwise(),
    "addition": ElementwiseEdit(None, torch.ones(SIZE)),
    "mlp": mlp(-1.0),
    "mlp_residual": mlp(0.0),
    "columns": columns(),
}


@pytest.mark.parametrize("name", EDITS)
def test_edit_counts_the_bytes_of_its_weights(name):
    expected = {
        "low_rank": 2 * RANK * SIZE + RANK,
        "act": 3 * RANK * SIZE + 2 * RANK,
        "act_without_target": 2 * RANK * SIZE + RANK,
        "elementwise": 2 * SIZE,
        "addition": SIZE,
        "mlp": 2 * RANK * SIZE + RANK + SIZE,
        "mlp_residual": 2 * RANK * SIZE + RANK + SIZE,
        "columns": 2 * RANK * 3 + RANK,
    }[name]
    assert EDITS[name].num_bytes == 4 * expected


@pytest.mark.parametrize("name", EDITS)
def test_edit_moves_every_weight_and_leaves_the_original(name):
    moved = EDITS[name].with_weights(lambda weight: weight.to("meta"))
    assert {tensor.device.type for tensor in moved.tensors().values()} == {"meta"}
    assert {tensor.device.type for tensor in EDITS[name].tensors().values()} == {"cpu"}
    assert type(moved) is type(EDITS[name])


@pytest.mark.parametrize("name", EDITS)
def test_scale_zero_switches_off_and_minus_one_negates(name):
    rows = torch.randn(4, SIZE)
    delta = EDITS[name].delta(rows)
    assert (EDITS[name].scaled(0.0).delta(rows) == 0).all()
    assert torch.allclose(EDITS[name].scaled(-1.0).delta(rows), -delta, atol=1e-5)


def test_columns_edit_is_the_inner_edit_on_its_columns_and_0_elsewhere():
    rows, edit = torch.randn(4, SIZE), columns()
    delta = edit.delta(rows)
    assert torch.equal(delta[:, 2:5], edit.inner.delta(rows[:, 2:5]))
    assert torch.equal(delta[:, [0, 1, 5, 6, 7]], torch.zeros(4, SIZE - 3))


def test_delta_of_no_rows_is_empty():
    for edit in EDITS.values():
        assert edit.delta(torch.zeros(0, SIZE)).shape == (0, SIZE)


def test_digests_differ_by_kind_weights_and_act():
    edits = [
        *EDITS.values(),
        columns().inner,
        ColumnsEdit(columns().inner, 1, 4),
        low_rank(seed=9),
        act_low_rank("tanh"),
        EDITS["low_rank"].scaled(0.5),
    ]
    assert len({edit_digest(edit) for edit in edits}) == len(edits)
    assert edit_digest(low_rank()) == edit_digest(low_rank())


def test_digest_of_a_foreign_edit_is_refused():
    with pytest.raises(TypeError, match="object has no digest"):
        edit_digest(object())


def test_folded_hash_ignores_name_and_provenance(tiny_model, make_set):
    model = tiny_model("llama")
    one = make_set(model, name="one")
    renamed = one.manifest.model_copy(update={"name": "two", "description": "else", "training": {"seed": 1}})
    two = InterventionSet.create(renamed, one.parameters)
    assert one.content_hash != two.content_hash
    assert one.fold().content_hash == two.fold().content_hash == make_set(model, name="three").fold().content_hash


@pytest.mark.parametrize(
    "changed",
    [
        {"layer": 2},
        {"component": "mlp_output"},
        {"positions": "f1+l2"},
        {"suffix_offset": 1},
        {"short_prompt": "floor"},
        {"part": "prefix"},
        {"act": "tanh"},
        {"formula": "direft"},
        {"positions": (0, -1)},
    ],
)
def test_folded_hash_sees_whatever_changes_behaviour(tiny_model, make_set, changed):
    model = tiny_model("llama")
    assert make_set(model, changed).fold().content_hash != make_set(model, {}).fold().content_hash


def test_folded_hash_sees_one_changed_weight(tiny_model, make_set):
    one = make_set(tiny_model("llama"))
    parameters = [{name: tensor.clone() for name, tensor in group.items()} for group in one.parameters]
    parameters[0]["learned_source_bias"][0] += 1e-6
    other = InterventionSet.create(one.manifest, parameters)
    assert other.fold().content_hash != one.fold().content_hash
    assert other.content_hash != one.content_hash


def test_folded_hash_depends_on_the_order_of_interventions(tiny_model, make_set):
    specs = [{"layer": 1, "parameters": 0}, {"layer": 2, "parameters": 0}]
    model = tiny_model("llama")
    assert make_set(model, *specs).fold().content_hash != make_set(model, *specs[::-1]).fold().content_hash


def test_scaled_set_has_its_own_hash_and_scale_one_is_itself(tiny_model, make_set):
    folded = make_set(tiny_model("llama")).fold()
    assert folded.scaled(1.0) is folded
    assert len({folded.content_hash, folded.scaled(0.5).content_hash, folded.scaled(-1.0).content_hash}) == 3


def test_tied_layers_share_one_folded_edit(tiny_model, make_set):
    folded = make_set(tiny_model("llama"), {"layer": 0, "parameters": 0}, {"layer": 3, "parameters": 0}).fold()
    assert folded.interventions[0].edit is folded.interventions[1].edit
    assert [i.site for i in folded.interventions] == [(0, "block_output"), (3, "block_output")]
    assert folded.is_prompt_only


def test_tied_layers_still_share_their_weights_when_scaled_or_moved(tiny_model, make_set):
    folded = make_set(tiny_model("llama"), {"layer": 0, "parameters": 0}, {"layer": 3, "parameters": 0}).fold()
    assert folded.num_bytes == folded.interventions[0].edit.num_bytes
    for changed in (folded.scaled(2.0), folded.to(torch.device("meta"))):
        assert changed.interventions[0].edit is changed.interventions[1].edit
        assert changed.interventions[0].edit is not folded.interventions[0].edit
        assert changed.num_bytes == folded.num_bytes
