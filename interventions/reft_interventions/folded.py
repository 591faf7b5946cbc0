"""Folded interventions: what the engine runs. Each formula folds, in float32, to one of these edits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from .positions import InterventionPositions

SiteKey = tuple[int, str]
"""(layer, component), for instance `(12, "block_output")`."""


class FoldedEdit(Protocol):
    """A pure function of hidden rows, with its weights in float32 on one device."""

    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`; both `[num_rows, hidden_size]`, float32."""
        ...

    def scaled(self, scale: float) -> FoldedEdit:
        """The same edit with its delta multiplied by `scale`."""
        ...

    def restricted(self, dimensions: tuple[int, ...]) -> FoldedEdit:
        """The same edit with only these rank dimensions; `InterventionSubspaceError` if it does not have them."""
        ...

    def with_source(self, source_rows: Tensor) -> tuple[FoldedEdit, ...]:
        """One edit for each source row, `[num_rows, hidden_size]`; `InterventionSourceError` if it takes none."""
        ...

    def to(self, device: torch.device) -> FoldedEdit:
        """A copy on `device`."""
        ...

    @property
    def needs_source(self) -> bool:
        """It can't run before `with_source`."""
        ...

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        ...


@dataclass(frozen=True)
class FoldedIntervention:
    """One edit at one site of the model."""

    layer: int
    component: str
    positions: InterventionPositions
    edit: FoldedEdit

    @property
    def site(self) -> SiteKey:
        return self.layer, self.component


@dataclass(frozen=True)
class FoldedSet:
    """A whole intervention set, ready to run; interventions at the same site apply in order.

    `content_hash` is the set's identity (scale included): equal hashes mean equal behaviour.
    """

    content_hash: str
    interventions: tuple[FoldedIntervention, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights; tied interventions share theirs."""
        return sum(edit.num_bytes for edit in {id(i.edit): i.edit for i in self.interventions}.values())

    @property
    def is_prompt_only(self) -> bool:
        return all(i.positions.is_prompt_only for i in self.interventions)

    def scaled(self, scale: float) -> FoldedSet:
        """The set with every delta multiplied by `scale` (negative allowed; 0 switches it off)."""
        if scale == 1.0:
            return self
        return FoldedSet(f"{self.content_hash}*{scale!r}", self._with_edits(lambda edit: edit.scaled(scale)))

    def to(self, device: torch.device) -> FoldedSet:
        """A copy with every weight on `device`."""
        return replace(self, interventions=self._with_edits(lambda edit: edit.to(device)))

    def _with_edits(self, function: Callable[[FoldedEdit], FoldedEdit]) -> tuple[FoldedIntervention, ...]:
        edits = {id(i.edit): i.edit for i in self.interventions}
        changed = {identity: function(edit) for identity, edit in edits.items()}
        return tuple(replace(i, edit=changed[id(i.edit)]) for i in self.interventions)
