"""The buffers that decode graphs read."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reft_server.engine.batch import Batch
from reft_server.engine.memory import to_host
from reft_server.engine.paged_cache import PagedSlot, PagePool

from .attention import Varlen
from .edit_tables import NUM_FIELDS, EditTables, RowEdits
from .triton_kernels import TritonStep

_NUM_NUMBERS = (
    5  # of a row: its position, where its K and V go, its keys, its token, and the row that its token is from
)


class StaticInputs:
    """One set of buffers for the graphs of all batch sizes, each of which reads its first rows.

    Rows of padding write no K and V, have no keys and no edits. What a step needs goes there in one copy; block tables
    and edits only where they have changed.

    Args:
        max_rows: of the largest graph.
        max_pages: of a sequence.
        num_layers: each may have an edit of each row behind it.
    """

    def __init__(self, max_rows: int, max_pages: int, num_layers: int, device: torch.device) -> None:
        self._num_layers = num_layers
        self._device = device
        self._numbers = torch.zeros(_NUM_NUMBERS * max_rows, dtype=torch.int64, device=device)
        self._input_ids = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(max_rows, dtype=torch.int32, device=device)
        self._tables = torch.zeros(max_rows, max_pages, dtype=torch.int32, device=device)
        self._edit_table = torch.zeros(num_layers * max_rows, NUM_FIELDS, dtype=torch.int64, device=device)
        self._edit_index = torch.full((num_layers * max_rows,), -1, dtype=torch.int32, device=device)
        self._known_tables = np.zeros((max_rows, max_pages), np.int32)  # what `_tables` holds
        self._in_tables: list[tuple[tuple[int, int], int]] = [((0, 0), 0)] * max_rows
        self._in_edits: tuple[EditTables, int] | None = None

    def step(self, size: int, pool: PagePool, *, has_edits: bool) -> TritonStep:
        """The first `size` rows as a step; `begin` must run before it."""
        numbers = self._rows(size)
        edits = None
        if has_edits:
            edits = EditTables(
                table=self._edit_table[: self._num_layers * size],
                index=self._edit_index[: self._num_layers * size].view(self._num_layers, size),
                sites={(layer, "block_output"): RowEdits(layer, 1) for layer in range(self._num_layers)},
                keep=(),
            )
        return TritonStep(
            input_ids=self._input_ids[:size],
            positions=numbers[0],
            sampled=torch.arange(size, device=self._device),
            slots=numbers[1],
            pool=pool,
            varlen=Varlen(
                query_starts=torch.arange(size + 1, dtype=torch.int32, device=self._device),
                lengths=self._lengths[:size],
                tables=self._tables[:size],
                num_decode=size,
            ),
            edits=edits,
        )

    def begin(self, size: int, tokens: Tensor) -> None:
        """The start of a graph: take the tokens that the host didn't know from where the last step left them."""
        _, _, lengths, known, sources = self._rows(size)
        self._input_ids[:size].copy_(fed(known, sources, tokens))
        self._lengths[:size].copy_(lengths)

    def blank(self, size: int) -> None:
        """Nothing but padding: to run a graph's kernels before it is recorded."""
        numbers = self._rows(size)
        numbers.zero_()
        numbers[1].fill_(-1)
        self._edit_index.fill_(-1)
        self._in_edits = None

    def fill(self, size: int, batch: Batch, sources: list[int]) -> None:
        """A decode step's rows; `sources` as in `fed`."""
        num_padding = size - batch.num_tokens
        slots = [paged(chunk.sequence.slot) for chunk in batch.chunks]
        starts = [chunk.start for chunk in batch.chunks]
        rows = (
            starts + [0] * num_padding,
            [slot.place(start) for slot, start in zip(slots, starts, strict=True)] + [-1] * num_padding,
            [start + 1 for start in starts] + [0] * num_padding,
            batch.token_ids + [0] * num_padding,
            sources + [-1] * num_padding,
        )
        self._rows(size).copy_(to_host(rows, torch.int64, self._device), non_blocking=True)
        self._fill_tables(slots)

    def _fill_tables(self, slots: list[PagedSlot]) -> None:
        """The rows' pages, all in one copy where any row has changed; behind them stands what was there before."""
        in_tables = [(slot.order, len(slot.pages)) for slot in slots]
        if in_tables == self._in_tables[: len(slots)]:
            return
        for row, (slot, has, had) in enumerate(zip(slots, in_tables, self._in_tables, strict=False)):
            if has != had:
                self._known_tables[row, : len(slot.pages)] = slot.pages
        self._in_tables[: len(slots)] = in_tables
        width = max(num_pages for _, num_pages in in_tables)
        tables = to_host(self._known_tables[: len(slots), :width], torch.int32, self._device)
        self._tables[: len(slots), :width].copy_(tables, non_blocking=True)

    def fill_edits(self, size: int, tables: EditTables) -> None:
        """A decode step's edits: tables on the host, with at most one edit of a row behind each layer."""
        if self._in_edits is not None and self._in_edits[0] is tables and self._in_edits[1] == size:
            return
        index = torch.full((self._num_layers, size), -1, dtype=torch.int32)
        for (layer, _), found in tables.sites.items():
            assert isinstance(found, RowEdits)  # not in tiles
            row = tables.index[found.first]
            index[layer, : len(row)] = row
        self._copy(index, self._edit_index[: self._num_layers * size].view(self._num_layers, size))
        self._copy(tables.table, self._edit_table[: len(tables.table)])
        self._in_edits = (tables, size)

    def _copy(self, source: Tensor, target: Tensor) -> None:
        is_pinned = self._device.type == "cuda"
        target.copy_(source.pin_memory() if is_pinned else source, non_blocking=True)

    def _rows(self, size: int) -> Tensor:
        return self._numbers[: _NUM_NUMBERS * size].view(_NUM_NUMBERS, size)


def fed(known: Tensor, sources: Tensor, tokens: Tensor) -> Tensor:
    """Input ids, `[num_rows]`: `tokens[sources]`, or `known` where the source is -1.

    A row whose token could not be chosen gets some token: its result is void.
    """
    expected = tokens.index_select(0, sources.clamp(min=0)).clamp(min=0)
    return torch.where(sources >= 0, expected, known)


def paged(slot: object) -> PagedSlot:
    """A sequence's slot, on the path that has pages."""
    assert isinstance(slot, PagedSlot)
    return slot
