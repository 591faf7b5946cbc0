"""Folded interventions: what the engine runs. Each formula folds, in float32, to one of these edits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from .errors import InterventionSourceError
from .positions import InterventionPositions, count

SiteKey = tuple[int, str]
"""(layer, component), for instance `(12, "block_output")`."""

ALIGNMENT = 128
"""Bytes: where a weight of a packed set may start. A GPU reads memory in lines of as many."""

_ALIGNED_VALUES = ALIGNMENT // torch.float32.itemsize


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

    def with_source(self, source_rows: Tensor) -> FoldedEdit:
        """The edit with one row of a source prompt for each token; `InterventionSourceError` if it takes none."""
        ...

    def of_tokens(self, first: int, end: int) -> FoldedEdit:
        """The edit of the tokens `[first, end)`, counted among those that are edited, where `differs_by_token`."""
        ...

    @property
    def differs_by_token(self) -> bool:
        """Each token has an edit of its own, which `of_tokens` selects."""
        ...

    def with_weights(self, function: Callable[[Tensor], Tensor]) -> FoldedEdit:
        """The same edit with each of its weights replaced by what `function` makes of it."""
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

    `content_hash` is the set's identity (scale, rank dimensions and source included): equal hashes mean equal
    behaviour. `origin` is the set whose weights this one shares; it lives as long as this one does. `buffer`, where
    there is one, holds all of the weights, which are views of it: see `packed`.
    """

    content_hash: str
    interventions: tuple[FoldedIntervention, ...]
    origin: FoldedSet | None = field(default=None, repr=False)
    buffer: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights; tied interventions share theirs."""
        return sum(edit.num_bytes for edit in {id(i.edit): i.edit for i in self.interventions}.values())

    @property
    def is_prompt_only(self) -> bool:
        return all(i.positions.is_prompt_only for i in self.interventions)

    @property
    def open_interventions(self) -> tuple[FoldedIntervention, ...]:
        """Those that need the rows of a source prompt before the set can run."""
        return tuple(i for i in self.interventions if i.edit.needs_source)

    def scaled(self, scale: float) -> FoldedSet:
        """The set with every delta multiplied by `scale` (negative allowed; 0 switches it off)."""
        if scale == 1.0:
            return self
        return FoldedSet(f"{self.content_hash}*{scale!r}", self._with_edits(lambda edit: edit.scaled(scale)))

    def restricted(self, dimensions: tuple[int, ...] | None) -> FoldedSet:
        """The set with only these rank dimensions of every edit; None = all.

        Raises:
            InterventionSubspaceError: an edit does not have them.
        """
        if dimensions is None:
            return self
        edits = self._with_edits(lambda edit: edit.restricted(dimensions))
        return FoldedSet(f"{self.content_hash}[{','.join(map(str, dimensions))}]", edits)

    def check_source_length(self, prompt_length: int, source_length: int) -> None:
        """The i-th edited token of the prompt takes the row of the i-th one of the source prompt.

        Raises:
            InterventionSourceError: the counts differ.
        """
        for one in self.open_interventions:
            num_prompt, num_source = (
                count(one.positions.intervals(length), length) for length in (prompt_length, source_length)
            )
            if num_prompt != num_source:
                raise InterventionSourceError(
                    f"at layer {one.layer} {one.component} the set edits {num_prompt} tokens of the prompt "
                    f"({prompt_length} tokens) and {num_source} of the source ({source_length} tokens); they must be "
                    "as many: send a source of the prompt's length",
                    param="source",
                )

    def with_source(self, source_rows: Sequence[Tensor], source_hash: str) -> FoldedSet:
        """The set with the rows of a source prompt in the place of its missing sources.

        Args:
            source_rows: for each of `open_interventions` the hidden rows at its positions of the source prompt,
                ascending, `[num_positions, hidden_size]`.
            source_hash: names the source prompt: equal hashes mean equal rows.
        """
        rows = iter(source_rows)
        closed = tuple(
            replace(one, edit=one.edit.with_source(next(rows))) if one.edit.needs_source else one
            for one in self.interventions
        )
        return FoldedSet(f"{self.content_hash}<{source_hash}", closed, origin=self)

    def to(self, device: torch.device) -> FoldedSet:
        """A copy with every weight on `device`."""
        if self.buffer is not None:
            return self.with_buffer(self.buffer.to(device))
        return self._with_weights(lambda weight: weight.to(device), buffer=None)

    def packed(self, *, is_pinned: bool = False) -> FoldedSet:
        """The set with its weights one after the other in one buffer of host memory, which a single copy moves.

        Each weight is contiguous and starts at a multiple of `ALIGNMENT` bytes; what several edits share is there once.

        Args:
            is_pinned: the buffer is page-locked: a GPU copies from it while the host goes on.
        """
        firsts: dict[int, int] = {}
        num_values = 0
        weights = self._weights()
        for weight in weights:
            firsts[id(weight)] = num_values
            num_values += -(-weight.numel() // _ALIGNED_VALUES) * _ALIGNED_VALUES
        buffer = torch.zeros(num_values, dtype=torch.float32, pin_memory=is_pinned)

        def packed(weight: Tensor) -> Tensor:
            first = firsts[id(weight)]
            return buffer[first : first + weight.numel()].view(weight.shape)

        for weight in weights:
            packed(weight).copy_(weight)
        return self._with_weights(packed, buffer)

    def with_buffer(self, buffer: Tensor) -> FoldedSet:
        """The packed set over a copy of its buffer, on any device."""
        return self._with_weights(
            lambda weight: buffer.as_strided(weight.shape, weight.stride(), weight.storage_offset()), buffer
        )

    def _weights(self) -> list[Tensor]:
        """Every weight once."""
        weights: dict[int, Tensor] = {}

        def note(weight: Tensor) -> Tensor:
            return weights.setdefault(id(weight), weight)

        self._with_weights(note, buffer=None)
        return list(weights.values())

    def _with_weights(self, function: Callable[[Tensor], Tensor], buffer: Tensor | None) -> FoldedSet:
        return replace(self, interventions=self._with_edits(lambda edit: edit.with_weights(function)), buffer=buffer)

    def _with_edits(self, function: Callable[[FoldedEdit], FoldedEdit]) -> tuple[FoldedIntervention, ...]:
        edits = {id(i.edit): i.edit for i in self.interventions}
        changed = {identity: function(edit) for identity, edit in edits.items()}
        return tuple(replace(i, edit=changed[id(i.edit)]) for i in self.interventions)
