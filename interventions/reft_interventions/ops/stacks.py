"""One edit per row: the weights of different edits side by side, so that all of them cost a few products."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

from reft_interventions.folded import FoldedEdit
from reft_interventions.tensor_edit import TensorEdit

EditedRows = tuple[FoldedEdit, list[int]]
"""An edit and the rows that it edits, ascending."""

_MAX_COPY_BYTES = 1 << 20
"""Copies of one edit's weights that are read in the time that a product of its own takes to call."""
_MAX_STACKS_BYTES = 256 << 20


class EditStacks:
    """Merges different edits of few rows each into stacked ones, in buffers that later merges fill again.

    Fresh memory for every merge would cost more than the copies do: its pages are mapped on first touch.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, dict[str, Tensor]] = {}
        self._used: dict[Hashable, dict[str, Tensor]] = {}
        self._used_bytes = 0

    def merge(self, name: Hashable, edited: Iterable[EditedRows]) -> list[EditedRows]:
        """The same edits of the same rows, those of one kind and one rank as a single edit.

        Nothing is padded: each rank has its own stack. Edits stay as they are where their copies would be large.

        Args:
            name: of this merge; the stacks of an earlier one of that name are overwritten.
            edited: edits and their rows; no row occurs twice.
        """
        merged: list[EditedRows] = []
        alike: dict[str, list[tuple[TensorEdit, list[int]]]] = {}
        for edit, rows in edited:
            if isinstance(edit, TensorEdit) and len(rows) * edit.num_bytes <= _MAX_COPY_BYTES:
                alike.setdefault(edit.shape_key, []).append((edit, rows))
            else:
                merged.append((edit, rows))
        for key, members in alike.items():
            pairs = sorted(((row, edit) for edit, rows in members for row in rows), key=lambda pair: pair[0])
            num_bytes = len(pairs) * members[0][0].num_bytes
            if len(members) == 1 or self._used_bytes + num_bytes > _MAX_STACKS_BYTES:
                merged += members
            else:
                self._used_bytes += num_bytes
                stacked = self._stack((name, key), [edit for _, edit in pairs])
                merged.append((stacked, [row for row, _ in pairs]))
        return merged

    def sweep(self) -> None:
        """Free the stacks that were not made since the last sweep."""
        self._buffers, self._used, self._used_bytes = self._used, {}, 0

    def _stack(self, name: Hashable, edits: Sequence[TensorEdit]) -> TensorEdit:
        """One edit whose weights are `[num_rows, ...]`: row i's are those of `edits[i]`."""
        stacked: dict[str, Tensor] = {}
        buffers = self._used[name] = self._buffers.get(name, {})
        for field, first in edits[0].tensors().items():
            buffer = buffers.get(field)
            if buffer is None or buffer.shape[0] < len(edits):
                buffer = buffers[field] = first.new_empty(len(edits), *first.shape)
            stacked[field] = torch.stack([edit.tensors()[field] for edit in edits], out=buffer[: len(edits)])
        return edits[0].with_tensors(stacked)
