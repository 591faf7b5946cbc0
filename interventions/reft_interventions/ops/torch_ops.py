"""Edits of hidden rows in plain torch: the only place where a served intervention touches a hidden state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reft_interventions.columns_edit import ColumnsEdit
from reft_interventions.folded import FoldedEdit


@dataclass(frozen=True)
class EditGroup:
    """Rows of a step and the edit that they share, or a stack that holds one edit for each of them.

    `rows` is `[num_edited]`, int64, without repeats, on any device; or a slice, which needs no gather.
    """

    edit: FoldedEdit
    rows: Tensor | slice


def apply_edits(hidden: Tensor, groups: Sequence[EditGroup]) -> None:
    """Edit chosen rows of `hidden` in place, each with its own group's edit.

    Semantics, for every group g and every t in g.rows:
        hidden[t] += g.edit.delta(hidden[t])
    The delta is computed in float32 and added in the dtype of `hidden`; rows in no group stay the same bit for bit.
    Groups apply in order, so a row that is in two of them is edited twice, the second edit seeing the first's result.

    Args:
        hidden: `[num_tokens, hidden_size]`, model dtype.
        groups: any number of groups, of any formulas and low-rank dimensions.

    Source: Wu et al. 2024, arXiv:2404.03592, eq. 4, folded.
    """
    for group in groups:
        edit, columns = group.edit, hidden
        if isinstance(group.edit, ColumnsEdit):
            edit, columns = group.edit.inner, hidden[:, group.edit.start : group.edit.end]
        if isinstance(group.rows, slice):
            rows = columns[group.rows]  # [num_edited, hidden_size], a view
            rows += edit.delta(rows.float()).to(hidden.dtype)
        else:
            numbers = group.rows.to(hidden.device)
            rows = columns.index_select(0, numbers)  # [num_edited, hidden_size]
            rows += edit.delta(rows.float()).to(hidden.dtype)
            columns.index_copy_(0, numbers, rows)
