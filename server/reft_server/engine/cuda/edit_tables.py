"""A step's edits as the kernels read them: entries with the addresses of weights, and which row has which entry.

Nothing is gathered, stacked or padded: an entry points at an edit's own weights, of any rank up to 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reft_interventions.folded import FoldedEdit, SiteKey
from reft_interventions.folding import ActLowRankEdit, LowRankEdit
from reft_interventions.ops import EditGroup
from reft_server.engine.memory import to_device

NUM_FIELDS = 8
"""int64 values of an entry: the addresses of source, its bias, up, target and its bias (0 = absent; all float32), the
rank, the number of the activation, and a spare."""

ACTS = ("linear", "relu", "gelu", "silu", "tanh", "sigmoid")
MAX_RANK = 64
ALIGNMENT = 16
"""Bytes, of the addresses of source, up and target: the kernels load four values at once."""

TILE_ROWS = 16
_FEWEST_TILED_ROWS = 32  # of one edit: from as many on its rows share a read of the weights


@dataclass(frozen=True)
class RowEdits:
    """A site's edits row by row: rows `[first, first + num_levels)` of the index, which apply in order."""

    first: int
    num_levels: int


@dataclass(frozen=True)
class TileEdits:
    """A site's edits in tiles of rows that share one."""

    rows: Tensor  # [num_tiles, TILE_ROWS], int32; -1 = none
    entries: Tensor  # [num_tiles], int32
    largest_rank: int


@dataclass(frozen=True)
class EditTables:
    """The edits of a step.

    Attributes:
        table: `[num_entries, NUM_FIELDS]`, int64.
        index: `[num_levels, num_rows]`, int32: entries, -1 = none.
        sites: how each site's edits run; a site that is missing has edits that only torch knows.
        keep: what the addresses point at, alive as long as the tables are.
    """

    table: Tensor
    index: Tensor
    sites: Mapping[SiteKey, RowEdits | TileEdits]
    keep: SequenceOf[FoldedEdit] = field(repr=False)


_Numbers = npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Layout:
    """The rows of a site's groups, one group after the other.

    Attributes:
        rows: `[num_edited]`.
        depths: `[num_edited]`: how many of a row's edits come before this one.
        lengths: rows of each group.
    """

    rows: _Numbers
    depths: _Numbers
    lengths: _Numbers

    @classmethod
    def of(cls, groups: SequenceOf[EditGroup], num_rows: int) -> _Layout:
        parts = [_numbers(group.rows) for group in groups]
        rows = np.concatenate(parts)
        depths = np.zeros_like(rows)
        counts = np.bincount(rows, minlength=num_rows)
        if counts.max() > 1:
            counts[:] = 0
            depths = np.concatenate([_count(counts, part) for part in parts])
        return cls(rows, depths, np.array([len(part) for part in parts], dtype=np.int32))

    def tiles(self) -> _Numbers:
        """`[num_tiles, TILE_ROWS]`: each group's rows in tiles of its own, -1 = none."""
        parts = np.split(self.rows, np.cumsum(self.lengths)[:-1])
        padded = [np.pad(part, (0, -len(part) % TILE_ROWS), constant_values=-1) for part in parts]
        return np.concatenate(padded).reshape(-1, TILE_ROWS)


@dataclass
class _Building:
    """Sites that edit the same rows, as most layers do, share what depends on rows only."""

    num_rows: int
    device: torch.device
    with_tiles: bool
    entries: list[list[int]] = field(default_factory=list)
    levels: list[_Numbers] = field(default_factory=list)
    keep: list[FoldedEdit] = field(default_factory=list)
    # By the identities of the groups' `rows`: the planner gives equal ones as one object.
    layouts: dict[tuple[int, ...], _Layout] = field(default_factory=dict)
    tiles: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def site(self, groups: SequenceOf[EditGroup]) -> RowEdits | TileEdits | None:
        described = [_entries(group) for group in groups]
        known = [entries for entries in described if entries is not None]
        if len(known) < len(described):
            return None
        numbers = np.cumsum([len(self.entries), *map(len, known)], dtype=np.int32)[:-1]  # each group's first entry
        self.entries += chain.from_iterable(known)
        self.keep += [group.edit for group in groups]
        key = tuple(id(group.rows) for group in groups)
        if key not in self.layouts:
            self.layouts[key] = _Layout.of(groups, self.num_rows)
        layout = self.layouts[key]
        is_shared = all(len(entries) == 1 for entries in known)
        if self.with_tiles and is_shared and layout.lengths.max() >= _FEWEST_TILED_ROWS and not layout.depths.any():
            if key not in self.tiles:
                self.tiles[key] = to_device(layout.tiles(), torch.int32, self.device)
            entries = np.repeat(numbers, -(-layout.lengths // TILE_ROWS))
            largest = max(one[0][5] for one in known)
            return TileEdits(self.tiles[key], to_device(entries, torch.int32, self.device), largest)
        return self._levels(layout, numbers, [len(entries) > 1 for entries in known])

    def _levels(self, layout: _Layout, numbers: _Numbers, has_own: list[bool]) -> RowEdits:
        """A row's second edit goes one level down from its first; `has_own`: a group's rows have an entry each."""
        values = np.repeat(numbers, layout.lengths)
        if any(has_own):
            places = np.concatenate([np.arange(length, dtype=np.int32) for length in layout.lengths])
            values += places * np.repeat(has_own, layout.lengths)
        first, num_levels = len(self.levels), int(layout.depths.max()) + 1
        for depth in range(num_levels):
            here = layout.depths == depth
            level = np.full(self.num_rows, -1, dtype=np.int32)
            level[layout.rows[here]] = values[here]
            self.levels.append(level)
        return RowEdits(first, num_levels)


def build_edit_tables(
    groups: Mapping[SiteKey, SequenceOf[EditGroup]], num_rows: int, device: torch.device, *, with_tiles: bool = True
) -> EditTables:
    """Tables for a step of `num_rows` rows; the groups' rows are on the host.

    Args:
        with_tiles: False = row by row in any case: a graph's launches don't depend on how many rows share an edit.
    """
    building = _Building(num_rows, device, with_tiles)
    sites = {site: found for site, members in groups.items() if (found := building.site(members)) is not None}
    table = to_device(building.entries or [[0] * NUM_FIELDS], torch.int64, device)
    levels = np.stack(building.levels) if building.levels else np.full((1, num_rows), -1, dtype=np.int32)
    index = to_device(levels, torch.int32, device)
    return EditTables(table, index, sites, building.keep)


def _entries(group: EditGroup) -> list[list[int]] | None:
    """One entry for all rows of a group or one for each, None where the kernels don't know the edit."""
    edit = group.edit
    if isinstance(edit, ActLowRankEdit):
        source, bias, target, target_bias, act = edit.source, edit.source_bias, edit.target, edit.target_bias, edit.act
    elif isinstance(edit, LowRankEdit):
        source, bias, target, target_bias, act = edit.down, edit.bias, None, None, "linear"
    else:
        return None
    tensors = [tensor for tensor in (source, bias, edit.up, target, target_bias) if tensor is not None]
    rank = source.shape[0]
    is_plain = all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in tensors)
    is_aligned = all(one.data_ptr() % ALIGNMENT == 0 for one in (source, edit.up, target) if one is not None)
    if source.ndim != 2 or not 0 < rank <= MAX_RANK or act not in ACTS or not (is_plain and is_aligned):
        return None
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (source, bias, edit.up, target, target_bias)]
    entry = [*addresses, rank, ACTS.index(act), 0]
    if bias.ndim == 1:
        return [entry]
    # An interchange: each row has a bias of its own.
    step = rank * bias.itemsize
    return [[entry[0], entry[1] + number * step, *entry[2:]] for number in range(bias.shape[0])]


def _numbers(rows: Tensor | slice) -> _Numbers:
    """The rows of a group, `[num_edited]`."""
    if isinstance(rows, slice):
        return np.arange(rows.start, rows.stop, dtype=np.int32)
    return rows.numpy().astype(np.int32)


def _count(counts: npt.NDArray[np.int64], rows: _Numbers) -> _Numbers:
    """How often each of a group's rows was counted before; counts them once more."""
    depths = counts[rows].astype(np.int32)
    counts[rows] += 1
    return depths
