"""Packed sets: all weights in one buffer, of which they are views; what they compute stays the same bit for bit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from reft_interventions.folded import ALIGNMENT, FoldedEdit, FoldedIntervention, FoldedSet
from reft_interventions.folding import LowRankEdit
from reft_interventions.positions import InterventionPositions
from reft_interventions.tensor_edit import TensorEdit
from tests.unit.interventions.test_folding import EDITS, SIZE


def make_set(*edits: FoldedEdit) -> FoldedSet:
    positions = InterventionPositions("all")
    return FoldedSet("set", tuple(FoldedIntervention(i, "block_output", positions, e) for i, e in enumerate(edits)))


def weights_of(folded: FoldedSet) -> list[Tensor]:
    edits = [one.edit for one in folded.interventions]
    return [weight for edit in edits if isinstance(edit, TensorEdit) for weight in edit.tensors().values()]


@pytest.mark.parametrize("name", EDITS)
def test_packed_set_computes_the_same_with_every_weight_in_its_buffer(name: str) -> None:
    edit, rows = EDITS[name], torch.randn(4, SIZE)
    packed = make_set(edit).packed()
    assert packed.buffer is not None
    assert torch.equal(packed.interventions[0].edit.delta(rows), edit.delta(rows))
    start = packed.buffer.data_ptr()
    for weight in weights_of(packed):
        assert weight.is_contiguous()
        assert (weight.data_ptr() - start) % ALIGNMENT == 0
        assert start <= weight.data_ptr() <= start + packed.buffer.nbytes - weight.nbytes
    assert packed.content_hash == "set"


def test_packed_weights_do_not_overlap() -> None:
    packed = make_set(*EDITS.values()).packed()
    spans = sorted((weight.data_ptr(), weight.data_ptr() + weight.nbytes) for weight in weights_of(packed))
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_packed_set_holds_what_its_edits_share_once() -> None:
    shared = torch.randn(32, 64)
    edits = [LowRankEdit(shared, torch.randn(32), shared) for _ in range(2)]
    packed = make_set(edits[0], edits[1], edits[0]).packed()
    assert packed.buffer is not None
    assert packed.buffer.nbytes == 4 * (32 * 64 + 2 * 32)
    assert packed.interventions[0].edit is packed.interventions[2].edit
    assert len({weight.data_ptr() for weight in weights_of(packed)}) == 3


def test_packed_weights_that_were_not_contiguous_are() -> None:
    down = torch.randn(SIZE, 2).T
    packed = make_set(LowRankEdit(down, torch.zeros(2), torch.randn(2, SIZE))).packed()
    assert torch.equal(weights_of(packed)[0], down)
    assert weights_of(packed)[0].is_contiguous()


def test_set_over_a_copy_of_its_buffer_has_nothing_of_the_original() -> None:
    packed = make_set(*EDITS.values()).packed()
    assert packed.buffer is not None
    copied = packed.with_buffer(packed.buffer.clone())
    for ours, theirs in zip(weights_of(copied), weights_of(packed), strict=True):
        assert torch.equal(ours, theirs)
    packed.buffer.zero_()
    assert all(bool(weight.any()) for weight in weights_of(copied))


def test_packed_set_moves_as_one_buffer() -> None:
    moved = make_set(*EDITS.values()).packed().to(torch.device("meta"))
    assert moved.buffer is not None
    assert {weight.untyped_storage()._cdata for weight in weights_of(moved)} == {moved.buffer.untyped_storage()._cdata}
    assert {weight.device.type for weight in weights_of(moved)} == {"meta"}


def test_variants_of_a_packed_set_are_not_packed_and_leave_it_as_it_is() -> None:
    edit = EDITS["low_rank"]
    packed = make_set(edit).packed()
    rows = torch.randn(3, SIZE)
    for variant in (packed.scaled(2.0), packed.restricted((1,))):
        assert variant.buffer is None
    assert torch.equal(packed.interventions[0].edit.delta(rows), edit.delta(rows))


def test_packed_set_of_no_weights_is_empty() -> None:
    packed = make_set().packed()
    assert packed.buffer is not None
    assert packed.buffer.nbytes == 0
