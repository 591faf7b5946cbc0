"""One edit per row: the weights of different edits side by side, so that all of them cost a few products."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reft_interventions.folded import FoldedEdit
from reft_interventions.folding import TensorEdit

EditedRows = tuple[FoldedEdit, list[int]]
"""An edit and the rows that it edits, ascending."""

_MAX_ROWS = 4
"""Of one edit: for more, one product for all of them is as good as a copy of its weights for each."""
_MAX_BYTES = 128 << 10
"""Of one edit's weights: reading more than that takes longer than the calls that a stack saves."""


class EditStacks:
    """Merges different edits of few rows each into stacked ones, in buffers that later merges fill again.

    Fresh memory for every merge would cost more than the copies do: its pages are mapped on first touch.
    """

    def __init__(self) -> None:
        self._buffers: dict[Hashable, dict[str, Tensor]] = {}
        self._used: dict[Hashable, dict[str, Tensor]] = {}

    def merge(self, name: Hashable, edited: Iterable[EditedRows]) -> list[EditedRows]:
        """The same edits of the same rows, those of one kind and one rank as a single edit.

        Edits that are large or have many rows stay as they are. Nothing is padded: each rank has its own stack.

        Args:
            name: of this merge; the stacks of an earlier one of that name are overwritten.
            edited: edits and their rows; no row occurs twice.
        """
        merged: list[EditedRows] = []
        alike: dict[Hashable, list[tuple[int, TensorEdit]]] = {}
        for edit, rows in edited:
            if isinstance(edit, TensorEdit) and len(rows) <= _MAX_ROWS and edit.num_bytes <= _MAX_BYTES:
                alike.setdefault(edit.shape_key, []).extend((row, edit) for row in rows)
            else:
                merged.append((edit, rows))
        for key, pairs in alike.items():
            pairs.sort(key=lambda pair: pair[0])
            edits = [edit for _, edit in pairs]
            is_one = all(edit is edits[0] for edit in edits)
            merged.append((edits[0] if is_one else self._stack((name, key), edits), [row for row, _ in pairs]))
        return merged

    def sweep(self) -> None:
        """Free the stacks that were not made since the last sweep."""
        self._buffers, self._used = self._used, {}

    def _stack(self, name: Hashable, edits: Sequence[TensorEdit]) -> TensorEdit:
        """One edit whose weights are `[num_rows, ...]`: row i's are those of `edits[i]`."""
        stacked: dict[str, Tensor] = {}
        buffers = self._used[name] = self._buffers.get(name, {})
        for field, first in edits[0].tensors().items():
            buffer = buffers.get(field)
            if buffer is None or buffer.shape[0] < len(edits):
                buffer = buffers[field] = first.new_empty(len(edits), *first.shape)
            stacked[field] = torch.stack([getattr(edit, field) for edit in edits], out=buffer[: len(edits)])
        return replace(edits[0], **stacked)
