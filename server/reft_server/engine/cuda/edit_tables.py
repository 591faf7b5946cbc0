"""A step's edits as the kernels read them: entries with the addresses of weights, and which row has which entry.

Nothing is gathered, stacked or padded: an entry points at an edit's own weights, of any rank up to 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

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


@dataclass
class _Building:
    num_rows: int
    device: torch.device
    with_tiles: bool
    entries: list[list[int]] = field(default_factory=list)
    levels: list[list[int]] = field(default_factory=list)
    keep: list[FoldedEdit] = field(default_factory=list)

    def site(self, groups: SequenceOf[EditGroup]) -> RowEdits | TileEdits | None:
        described = [(group, _entries(group)) for group in groups]
        if any(entries is None for _, entries in described):
            return None
        numbered = []
        for group, entries in described:
            numbered.append((_rows(group), range(len(self.entries), len(self.entries) + len(entries or ()))))
            self.entries += entries or []
            self.keep.append(group.edit)
        is_shared = all(len(numbers) == 1 for _, numbers in numbered)
        if (
            self.with_tiles
            and is_shared
            and max(len(rows) for rows, _ in numbered) >= _FEWEST_TILED_ROWS
            and _are_apart(numbered)
        ):
            return self._tiles(numbered)
        return self._levels(numbered)

    def _levels(self, numbered: SequenceOf[tuple[SequenceOf[int], range]]) -> RowEdits:
        """A row's second edit goes one level down from its first."""
        first = len(self.levels)
        depth = [0] * self.num_rows
        for rows, numbers in numbered:
            for place, row in enumerate(rows):
                if first + depth[row] == len(self.levels):
                    self.levels.append([-1] * self.num_rows)
                self.levels[first + depth[row]][row] = numbers[place if len(numbers) > 1 else 0]
                depth[row] += 1
        return RowEdits(first, len(self.levels) - first)

    def _tiles(self, numbered: SequenceOf[tuple[SequenceOf[int], range]]) -> TileEdits:
        tiles, entries = [], []
        for rows, numbers in numbered:
            for start in range(0, len(rows), TILE_ROWS):
                members = list(rows[start : start + TILE_ROWS])
                tiles.append(members + [-1] * (TILE_ROWS - len(members)))
                entries.append(numbers[0])
        largest = max(self.entries[number][5] for number in entries)
        return TileEdits(
            to_device(tiles, torch.int32, self.device),
            to_device(entries, torch.int32, self.device),
            largest,
        )


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
    index = to_device(building.levels or [[-1] * num_rows], torch.int32, device)
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


def _rows(group: EditGroup) -> SequenceOf[int]:
    if isinstance(group.rows, slice):
        return range(group.rows.start, group.rows.stop)
    rows: list[int] = group.rows.tolist()
    return rows


def _are_apart(numbered: SequenceOf[tuple[SequenceOf[int], range]]) -> bool:
    """No row is edited twice."""
    num_rows = sum(len(rows) for rows, _ in numbered)
    return len({row for rows, _ in numbered for row in rows}) == num_rows
