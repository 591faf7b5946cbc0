"""Which rows of a step are edited, where and by what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor

from reft_interventions.folded import FoldedEdit, SiteKey
from reft_interventions.ops import EditedRows, EditGroup, EditStacks, apply_edits
from reft_interventions.positions import Interval

from .capture import RowCapture
from .kv_memory import KVLayout
from .scheduler import ScheduledChunk
from .sequence import Sequence, SequenceEdit

_Place = tuple[SiteKey, int]
"""A site, and which of a sequence's edits there: the first, the second, …"""


@dataclass(frozen=True)
class CaptureGroup:
    """Rows `[start, end)` of a step that are looked at: the first of them is at `position` of its prompt."""

    capture: RowCapture
    start: int
    end: int
    position: int


class EditPlan:
    """The edits of one step: for each site, groups that apply in order, and rows that are only noted."""

    def __init__(
        self,
        groups: Mapping[SiteKey, SequenceOf[EditGroup]],
        captures: Mapping[SiteKey, SequenceOf[CaptureGroup]] = MappingProxyType({}),
    ) -> None:
        self.groups = groups
        self.captures = captures

    @property
    def sites(self) -> SequenceOf[SiteKey]:
        """Sites where at least one row of this step is edited or noted."""
        return tuple(dict.fromkeys((*self.groups, *self.captures))) if self.captures else tuple(self.groups)

    @property
    def is_plain(self) -> bool:
        """`apply` does what the groups say and nothing besides: kernels of their own may take its place."""
        return type(self) is EditPlan and not self.captures

    def has_rows_at(self, layer: int, component: str) -> bool:
        """Whether a row of this step is edited or noted there."""
        return (layer, component) in self.groups or (layer, component) in self.captures

    def apply(self, hidden: Tensor, layer: int, component: str) -> None:
        """Edit `hidden` (`[num_tokens, width]`) in place; nothing runs at a site without edited rows."""
        for one in self.captures.get((layer, component), ()):
            one.capture.note(one.position, hidden[one.start : one.end])
        groups = self.groups.get((layer, component))
        if groups is not None:
            apply_edits(hidden, groups)


NO_EDITS = EditPlan(MappingProxyType({}))


class EditPlanner:
    """Plans the edits of step after step. A plan is valid until the next one is made: they share buffers.

    Decoding rows keep their edits from step to step, so their part of the plan is kept while the same sets decode in
    the same rows. There, different edits of few rows each are stacked (`EditStacks`); a prompt's rows are many, and get
    one product per edit.

    Args:
        device: where the rows' numbers are.
        stacks_edits: False where kernels take different edits in one launch as they are.
    """

    @classmethod
    def for_layout(cls, layout: KVLayout) -> EditPlanner:
        """The planner for a model path: kernels over pages read edits from tables, which are built on the host."""
        if layout.is_paged:
            return cls(torch.device("cpu"), stacks_edits=False)
        return cls(layout.device)

    def __init__(self, device: torch.device, *, stacks_edits: bool = True) -> None:
        self._device = device
        self._stacks_edits = stacks_edits
        self._stacks = EditStacks()
        self._decoding: list[tuple[int, list[str]]] = []
        self._decoding_plan = NO_EDITS
        self._decoding_groups: dict[_Place, list[EditGroup]] = {}

    def plan(self, chunks: SequenceOf[ScheduledChunk]) -> EditPlan:
        """The plan of a step that computes `chunks`, laid out one after the other."""
        decoding: list[tuple[int, Sequence]] = []
        prompts: list[tuple[int, ScheduledChunk]] = []
        captures: dict[SiteKey, list[CaptureGroup]] = {}
        offset = 0
        for chunk in chunks:
            sequence = chunk.sequence
            for one in sequence.request.captures:
                noted = CaptureGroup(one, offset, offset + chunk.num_tokens, chunk.start)
                captures.setdefault(one.site, []).append(noted)
            if sequence.has_edits_in(chunk.start):
                if chunk.num_tokens == 1 and chunk.start >= sequence.prompt_length:
                    decoding.append((offset, sequence))
                else:
                    prompts.append((offset, chunk))
            offset += chunk.num_tokens
        if decoding:
            self._update_decoding(decoding)
        if not prompts and not captures:
            return self._decoding_plan if decoding else NO_EDITS
        places = dict(self._decoding_groups) if decoding else {}
        edited_rows = _by_place(_prompt_rows(prompts))
        indices: dict[int, Tensor | slice] = {}
        for place, edited in edited_rows.items():
            places[place] = places.get(place, []) + self._groups(edited, indices)
        return _in_order(places, captures)

    def _update_decoding(self, decoding: list[tuple[int, Sequence]]) -> None:
        # Equal content hashes mean equal edits.
        key = [(row, [one.content_hash for one in s.request.interventions]) for row, s in decoding]
        if key == self._decoding:
            return
        self._decoding = []  # until the new groups are complete
        self._decoding_groups = {
            place: self._groups(self._stacks.merge(place, edited) if self._stacks_edits else edited, {})
            for place, edited in _by_place(_decoding_rows(decoding)).items()
        }
        self._decoding_plan = _in_order(self._decoding_groups)
        self._stacks.sweep()
        self._decoding = key

    def _groups(self, edited: Iterable[EditedRows], indices: dict[int, Tensor | slice]) -> list[EditGroup]:
        """Groups of one place. `indices`, by the identity of lists that live as long: layers share what is equal."""
        groups = []
        for edit, rows in edited:
            if id(rows) not in indices:
                indices[id(rows)] = self._index(rows)
            groups.append(EditGroup(edit, indices[id(rows)]))
        return groups

    def _index(self, rows: list[int]) -> Tensor | slice:
        if rows[-1] - rows[0] + 1 == len(rows):
            return slice(rows[0], rows[-1] + 1)
        return torch.tensor(rows, device=self._device)


def _decoding_rows(decoding: list[tuple[int, Sequence]]) -> Iterator[tuple[SequenceEdit, list[int]]]:
    for row, sequence in decoding:
        for edit in sequence.edits:
            if edit.intervals[-1][1] is None:
                yield edit, [row]


def _prompt_rows(prompts: list[tuple[int, ScheduledChunk]]) -> Iterator[tuple[SequenceEdit, list[int]]]:
    for offset, chunk in prompts:
        end = chunk.start + chunk.num_tokens
        found: dict[tuple[Interval, ...], list[int]] = {}  # most sets edit the same rows behind every layer
        for edit in chunk.sequence.edits:
            rows = found.get(edit.intervals)
            if rows is None:
                positions = edit.rows(chunk.start, end)
                rows = found[edit.intervals] = [position - chunk.start + offset for position in positions]
            if rows:
                yield edit.within(chunk.start, end), rows


def _by_place(edited: Iterable[tuple[SequenceEdit, list[int]]]) -> dict[_Place, list[EditedRows]]:
    """Per place, each edit once with all its rows; equal rows of different places are one list."""
    places: dict[_Place, dict[int, tuple[FoldedEdit, list[list[int]]]]] = {}
    for edit, rows in edited:
        members = places.setdefault((edit.site, edit.order), {})
        members.setdefault(id(edit.edit), (edit.edit, []))[1].append(rows)
    joined: dict[tuple[int, ...], list[int]] = {}

    def join(parts: list[list[int]]) -> list[int]:
        key = tuple(map(id, parts))
        if key not in joined:
            joined[key] = list(chain.from_iterable(parts))
        return joined[key]

    return {place: [(edit, join(parts)) for edit, parts in members.values()] for place, members in places.items()}


def _in_order(
    places: Mapping[_Place, list[EditGroup]], captures: Mapping[SiteKey, list[CaptureGroup]] = MappingProxyType({})
) -> EditPlan:
    groups: dict[SiteKey, list[EditGroup]] = {}
    for site, order in sorted(places):
        groups.setdefault(site, []).extend(places[site, order])
    return EditPlan(groups, captures)
