"""Which rows of a step are edited, where and by what."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from reft_interventions.folded import FoldedEdit, SiteKey
from reft_interventions.ops import EditGroup, apply_edits

from .scheduler import ScheduledChunk


class EditPlan:
    """The edits of one step: for each site, passes of groups. A pass edits a row at most once."""

    def __init__(self, passes: dict[SiteKey, list[list[EditGroup]]]) -> None:
        self.passes = passes

    @property
    def sites(self) -> SequenceOf[SiteKey]:
        """Sites where at least one row of this step is edited."""
        return tuple(self.passes)

    def apply(self, hidden: Tensor, layer: int, component: str) -> None:
        """Edit `hidden` (`[num_tokens, hidden_size]`) in place; nothing runs at a site without edited rows."""
        for groups in self.passes.get((layer, component), ()):
            apply_edits(hidden, groups)


NO_EDITS = EditPlan({})


def plan_edits(chunks: SequenceOf[ScheduledChunk], device: torch.device) -> EditPlan:
    """Group edited rows by site, order within the sequence, and edit."""
    grouped: dict[SiteKey, dict[tuple[int, int], tuple[FoldedEdit, list[int]]]] = {}
    offset = 0
    for chunk in chunks:
        if chunk.sequence.has_edits_in(chunk.start):
            for edit in chunk.sequence.edits:
                rows = edit.rows(chunk.start, chunk.start + chunk.num_tokens)
                if rows:
                    group = grouped.setdefault(edit.site, {}).setdefault((edit.order, id(edit.edit)), (edit.edit, []))
                    group[1].extend(offset - chunk.start + row for row in rows)
        offset += chunk.num_tokens
    if not grouped:
        return NO_EDITS
    passes: dict[SiteKey, list[list[EditGroup]]] = {}
    for site, groups in grouped.items():
        by_order: dict[int, list[EditGroup]] = {}
        for (order, _), (folded_edit, rows) in groups.items():
            by_order.setdefault(order, []).append(EditGroup(folded_edit, torch.tensor(rows, device=device)))
        passes[site] = [by_order[order] for order in sorted(by_order)]
    return EditPlan(passes)
