"""The batched edits against a float64 loop over rows, for every mix of edits in a batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reft_interventions.columns_edit import ColumnsEdit
from reft_interventions.folded import FoldedEdit
from reft_interventions.folding import ActLowRankEdit, ElementwiseEdit, LowRankEdit, MlpEdit
from reft_interventions.ops import EditedRows, EditGroup, EditStacks, apply_edits

HIDDEN_SIZE, NUM_TOKENS = 48, 40
GENERATOR = torch.Generator().manual_seed(0)
ZIPF = torch.multinomial(1.0 / torch.arange(1, 33), NUM_TOKENS, replacement=True, generator=GENERATOR).tolist()
UNIFORM = torch.randint(0, 16, (NUM_TOKENS,), generator=GENERATOR).tolist()
MIXES: dict[str, list[int | None]] = {  # the edit of each row, None = unedited
    "none": [None] * NUM_TOKENS,
    "identical": [0] * NUM_TOKENS,
    "distinct": [*range(NUM_TOKENS)],
    "uniform": UNIFORM,
    "zipf": ZIPF,
    "skewed": [0] * 30 + [*range(1, 6)] + [None] * 5,
    "sparse": [None, 3, None, 1, 3, 2] + [None] * (NUM_TOKENS - 6),
}
KINDS = ("low_rank", "act", "act_without_target", "elementwise", "addition", "mlp", "mlp_residual", "columns", "mixed")


def make_edit(kind: str, seed: int, low_rank_dimension: int) -> FoldedEdit:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    matrix, vector = (low_rank_dimension, HIDDEN_SIZE), (low_rank_dimension,)
    if kind == "low_rank":
        return LowRankEdit(normal(*matrix), normal(*vector), normal(*matrix))
    if kind == "act":
        target = normal(*matrix), normal(*vector)
        return ActLowRankEdit(normal(*matrix), normal(*vector), normal(*matrix), "gelu", *target)
    if kind == "act_without_target":
        return ActLowRankEdit(normal(*matrix), normal(*vector), normal(*matrix), "tanh")
    if kind in ("mlp", "mlp_residual"):
        weights = normal(*matrix), normal(*vector), normal(*matrix), normal(HIDDEN_SIZE)
        return MlpEdit(*weights, "tanh", -1.0 if kind == "mlp" else 0.0)
    if kind == "columns":
        half = low_rank_dimension, HIDDEN_SIZE // 2
        return ColumnsEdit(LowRankEdit(normal(*half), normal(*vector), normal(*half)), 7, 7 + HIDDEN_SIZE // 2)
    return ElementwiseEdit(normal(HIDDEN_SIZE) if kind == "elementwise" else None, normal(HIDDEN_SIZE))


def make_edits(kind: str, low_rank_dimension: int | str) -> list[FoldedEdit]:
    kinds = KINDS[:-1] if kind == "mixed" else (kind,)
    return [
        make_edit(kinds[i % len(kinds)], i, 1 + i % 7 if isinstance(low_rank_dimension, str) else low_rank_dimension)
        for i in range(NUM_TOKENS)
    ]


def expected(hidden: Tensor, edit: FoldedEdit) -> Tensor:
    """What the formulas say for one row, in float64."""
    h = hidden.double()
    if isinstance(edit, LowRankEdit):
        return h + (edit.down.double() @ h + edit.bias.double()) @ edit.up.double()
    if isinstance(edit, ElementwiseEdit):
        return h * (1.0 if edit.scale is None else edit.scale.double()) + edit.shift.double()
    if isinstance(edit, ColumnsEdit):
        columns = slice(edit.start, edit.end)
        return torch.cat((h[: edit.start], expected(hidden[columns], edit.inner), h[edit.end :]))
    if isinstance(edit, MlpEdit):
        inner = torch.tanh(edit.weight_in.double() @ h + edit.bias_in.double())
        return (1 + edit.row_factor) * h + inner @ edit.weight_out.double() + edit.bias_out.double()
    assert isinstance(edit, ActLowRankEdit)
    act: Callable[[Tensor], Tensor] = {"gelu": torch.nn.functional.gelu, "tanh": torch.tanh}[edit.act]
    source = act(edit.source.double() @ h + edit.source_bias.double())
    if edit.target is not None and edit.target_bias is not None:
        source = source - (edit.target.double() @ h + edit.target_bias.double())
    return h + source @ edit.up.double()


def edited_rows(mix: str, edits: list[FoldedEdit]) -> list[EditedRows]:
    rows: dict[int, list[int]] = {}
    for row, which in enumerate(MIXES[mix]):
        if which is not None:
            rows.setdefault(which, []).append(row)
    return [(edits[which], members) for which, members in rows.items()]


def groups_of(edited: list[EditedRows]) -> list[EditGroup]:
    return [EditGroup(edit, torch.tensor(rows)) for edit, rows in edited]


def make_hidden(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("low_rank_dimension", [1, 4, 16, "mixed"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("is_stacked", [False, True])
def test_apply_edits_changes_each_row_by_its_own_edit_only(
    is_stacked: bool, mix: str, kind: str, low_rank_dimension: int | str, dtype: torch.dtype
) -> None:
    hidden, edits = make_hidden(dtype), make_edits(kind, low_rank_dimension)
    edited = edited_rows(mix, edits)
    got = hidden.clone()
    apply_edits(got, groups_of(EditStacks().merge("site", edited) if is_stacked else edited))
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    for row, which in enumerate(MIXES[mix]):
        if which is None:
            assert torch.equal(got[row], hidden[row])
        else:
            want = expected(hidden[row], edits[which])
            torch.testing.assert_close(got[row].double(), want, rtol=0, atol=tolerance * want.abs().max().item())


def test_apply_edits_composes_groups_in_order() -> None:
    hidden = make_hidden()
    first, second = make_edit("low_rank", 1, 2), make_edit("elementwise", 2, 1)
    edited = hidden.clone()
    apply_edits(edited, groups_of([(first, [1]), (second, [1])]))
    once = expected(hidden[1], first)
    torch.testing.assert_close(edited[1].double(), expected(once, second), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_apply_edits_takes_a_slice_for_its_rows(kind: str) -> None:
    edited = [(edit, [row]) for row, edit in enumerate(make_edits(kind, 4)[:8], start=3)]
    by_index, by_slice = make_hidden(), make_hidden()
    apply_edits(by_index, groups_of(edited))
    apply_edits(by_slice, [EditGroup(edit, slice(rows[0], rows[0] + 1)) for edit, rows in edited])
    assert torch.equal(by_index, by_slice)


@pytest.mark.parametrize("low_rank_dimension", [1, 4, 16])
def test_stacked_row_does_not_depend_on_its_company(low_rank_dimension: int) -> None:
    """Row 5 among 40 sets, among three, and alone: the same but for float32 rounding."""
    edits = make_edits("low_rank", low_rank_dimension)
    results = []
    for company in (range(NUM_TOKENS), (4, 5, 6), (5,)):
        got = make_hidden()
        apply_edits(got, groups_of(EditStacks().merge("site", [(edits[row], [row]) for row in company])))
        results.append(got[5])
    spread = results[0].abs().max().item()
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-6 * spread)


def test_stacked_row_that_overflows_leaves_the_others_finite() -> None:
    edits = make_edits("low_rank", 4)[:6]
    edits[2] = edits[2].scaled(float("inf"))
    got = make_hidden()
    apply_edits(got, groups_of(EditStacks().merge("site", [(edit, [row]) for row, edit in enumerate(edits)])))
    assert not torch.isfinite(got[2]).all()
    assert torch.isfinite(got[[0, 1, 3, 4, 5]]).all()


def test_merge_makes_one_stack_per_kind_and_rank_without_padding() -> None:
    edits = [make_edit("low_rank", 0, 1), make_edit("low_rank", 1, 8), make_edit("low_rank", 2, 1)]
    merged = EditStacks().merge("site", [(edit, [row]) for row, edit in enumerate(edits)])
    shapes = {tuple(rows): edit.down.shape for edit, rows in merged if isinstance(edit, LowRankEdit)}
    assert shapes == {(0, 2): (2, 1, HIDDEN_SIZE), (1,): (8, HIDDEN_SIZE)}


def test_merge_leaves_an_edit_alone_whose_copies_would_be_large() -> None:
    """Of 512 kB each: one row is stacked, twelve rows share one product."""
    edits = [make_edit("low_rank", seed, 1024) for seed in range(3)]
    shared = (edits[2], [*range(2, 14)])
    merged = EditStacks().merge("site", [(edits[0], [0]), (edits[1], [1]), shared])
    assert shared in merged
    assert [rows for _, rows in merged] == [[*range(2, 14)], [0, 1]]


def test_merge_stops_stacking_when_all_stacks_together_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [make_edit("low_rank", seed, 4) for seed in range(4)]
    edited = [(edit, [row]) for row, edit in enumerate(edits)]
    assert isinstance(edits[0], LowRankEdit)
    monkeypatch.setattr("reft_interventions.ops.stacks._MAX_STACKS_BYTES", 6 * edits[0].num_bytes)
    stacks = EditStacks()
    assert [len(stacks.merge(name, edited)) for name in ("first", "second")] == [1, 4]
    stacks.sweep()
    assert len(stacks.merge("second", edited)) == 1


def test_merge_again_under_a_name_reuses_its_memory_and_holds_the_new_edits() -> None:
    stacks, edits = EditStacks(), make_edits("low_rank", 4)
    [(first, _)] = stacks.merge("site", [(edits[row], [row]) for row in range(8)])
    stacks.sweep()
    [(second, rows)] = stacks.merge("site", [(edits[row + 3], [row]) for row in range(5)])
    assert isinstance(first, LowRankEdit)
    assert isinstance(second, LowRankEdit)
    assert second.down.data_ptr() == first.down.data_ptr()
    got, want = make_hidden(), make_hidden()
    apply_edits(got, groups_of([(second, rows)]))
    apply_edits(want, groups_of([(edits[row + 3], [row]) for row in range(5)]))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())
