"""The batched edit against a float64 loop over rows, for every mix of edits in a batch."""

from __future__ import annotations

import pytest
import torch

from reft_interventions.folded import FoldedEdit
from reft_interventions.folding import ElementwiseEdit, LowRankEdit
from reft_interventions.ops import EditGroup, apply_edits

HIDDEN_SIZE, NUM_TOKENS = 48, 40
MIXES = {
    "none": [],
    "identical": [0] * NUM_TOKENS,
    "distinct": list(range(NUM_TOKENS)),
    "skewed": [0] * 30 + list(range(1, 6)),
    "sparse": [3, 1, 3, 2],
}


def low_rank_edit(seed: int, low_rank_dimension: int) -> LowRankEdit:
    generator = torch.Generator().manual_seed(seed)
    shape = (low_rank_dimension, HIDDEN_SIZE)
    down, up = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
    return LowRankEdit(down, torch.randn(low_rank_dimension, generator=generator), up)


def expected(hidden: torch.Tensor, row: int, edit: FoldedEdit) -> torch.Tensor:
    """`h + (C h + c) U`, or `h * s + t`, for one row in float64."""
    h = hidden[row].double()
    if isinstance(edit, LowRankEdit):
        return h + (edit.down.double() @ h + edit.bias.double()) @ edit.up.double()
    assert isinstance(edit, ElementwiseEdit)
    return h * (1.0 if edit.scale is None else edit.scale.double()) + edit.shift.double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low_rank_dimension", [1, 4, "mixed"])
@pytest.mark.parametrize("mix", MIXES)
def test_apply_edits_changes_each_row_by_its_own_edit_only(
    mix: str, low_rank_dimension: int | str, dtype: torch.dtype
) -> None:
    hidden = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)
    assignment = dict(enumerate(MIXES[mix]))
    edits: dict[int, FoldedEdit] = {
        i: low_rank_edit(i, 1 + i % 7 if isinstance(low_rank_dimension, str) else low_rank_dimension)
        for i in set(assignment.values())
    }
    if 1 in edits:
        edits[1] = ElementwiseEdit(torch.rand(HIDDEN_SIZE), torch.randn(HIDDEN_SIZE))
    groups = [
        EditGroup(edit, torch.tensor([row for row, which in assignment.items() if which == i]))
        for i, edit in edits.items()
    ]
    edited = hidden.clone()
    apply_edits(edited, groups)
    for row in range(NUM_TOKENS):
        if row in assignment:
            want = expected(hidden, row, edits[assignment[row]])
            tolerance = 1e-4 if dtype == torch.float32 else 3e-2
            spread = want.abs().max().item()
            torch.testing.assert_close(edited[row].double(), want, rtol=0, atol=tolerance * spread)
        else:
            assert torch.equal(edited[row], hidden[row])


def test_apply_edits_composes_groups_in_order() -> None:
    hidden = torch.randn(3, HIDDEN_SIZE)
    first, second = low_rank_edit(1, 2), ElementwiseEdit(None, torch.ones(HIDDEN_SIZE))
    rows = torch.tensor([1])
    edited = hidden.clone()
    apply_edits(edited, [EditGroup(first, rows), EditGroup(second, rows)])
    once = hidden.clone()
    once[1] = expected(hidden, 1, first).float()
    torch.testing.assert_close(edited[1].double(), expected(once, 1, second), rtol=1e-5, atol=1e-4)
