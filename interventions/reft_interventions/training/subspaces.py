"""Rank dimensions set aside for a task: each training row moves only the dimensions of its own subspace."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..errors import TrainingError
from ..formulas import Formula, Parameters
from ..positions import InterventionPositions, intersect
from .data import TokenizedExample

Subspaces = Mapping[str, tuple[int, ...]]
_GROUP = re.compile(r"\s*(?P<name>[A-Za-z0-9_.-]{1,64})\s*=\s*(?P<dimensions>\d+(\s*,\s*\d+)*)\s*")


def parse_subspaces(text: str, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
    """Read `task_a=0,1;task_b=2,3`; the empty text names none.

    Raises:
        TrainingError: not of that form, a name or a dimension twice, or a dimension outside the rank.
    """
    groups: dict[str, tuple[int, ...]] = {}
    used: set[int] = set()
    for part in filter(str.strip, text.split(";")):
        match = _GROUP.fullmatch(part)
        if match is None or match["name"] in groups:
            raise TrainingError(f"subspaces {text!r}: write them as 'task_a=0,1;task_b=2,3'", param="subspaces")
        dimensions = tuple(int(number) for number in match["dimensions"].split(","))
        if len(set(dimensions)) != len(dimensions) or used & set(dimensions):
            raise TrainingError(f"subspaces {text!r}: a dimension belongs to one subspace, once", param="subspaces")
        if max(dimensions) >= low_rank_dimension:
            raise TrainingError(
                f"subspaces {text!r}: dimensions count from 0 to {low_rank_dimension - 1}, the rank less one",
                param="subspaces",
            )
        used.update(dimensions)
        groups[match["name"]] = dimensions
    return groups


def num_edited(rule: InterventionPositions, example: TokenizedExample) -> int:
    """How many rows of the example a training pass edits; its last answer token is never read."""
    return len(intersect(rule.intervals(len(example.prompt_ids)), 0, example.num_tokens - 1))


def delta_by_subspace(
    formula: Formula, rows: Tensor, parameters: Parameters, act: str, owners: Sequence[str | None], subspaces: Subspaces
) -> Tensor:
    """What the formula adds to each row with the dimensions of the row's subspace alone.

    Args:
        formula: one whose rank dimensions act apart from each other.
        rows: `[num_rows, width]`.
        parameters: of the whole rank, the dtype of `rows`.
        act: a name in `ACTIVATIONS`.
        owners: each row's subspace; None = every dimension.
        subspaces: the dimensions by name.

    Returns:
        `[num_rows, width]`.
    """
    delta = torch.zeros_like(rows)
    for name in dict.fromkeys(owners):
        index = torch.tensor([row for row, owner in enumerate(owners) if owner == name], device=rows.device)
        own = parameters if name is None else formula.restricted(parameters, subspaces[name])
        delta = delta.index_add(0, index, formula.delta(rows[index], own, act))
    return delta
