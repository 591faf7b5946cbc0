"""An edit of some columns of a row: how one attention head is edited where the engine knows whole rows only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from .tensor_edit import TensorEdit


@dataclass(frozen=True, eq=False)
class ColumnsEdit(TensorEdit):
    """An edit of some columns of a row, for instance one head's; the others stay as they are.

    Args:
        inner: the edit of the columns.
        start: the first column.
        end: the one after the last.
    """

    inner: TensorEdit
    start: int
    end: int

    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`, 0 outside the columns; both `[num_rows, width]`, float32."""
        delta = torch.zeros_like(rows)
        delta[:, self.start : self.end] = self.inner.delta(rows[:, self.start : self.end])
        return delta

    def scaled(self, scale: float) -> ColumnsEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(self, inner=self.inner.scaled(scale))

    @property
    def needs_source(self) -> bool:
        return self.inner.needs_source

    def restricted(self, dimensions: tuple[int, ...]) -> ColumnsEdit:
        """The same columns edited with only these rank dimensions; raises as the inner edit does."""
        return replace(self, inner=self.inner.restricted(dimensions))

    @property
    def differs_by_token(self) -> bool:
        return self.inner.differs_by_token

    def of_tokens(self, first: int, end: int) -> ColumnsEdit:
        """The same columns edited as the tokens `[first, end)` are."""
        return replace(self, inner=self.inner.of_tokens(first, end))

    def with_source(self, source_rows: Tensor) -> ColumnsEdit:
        """The same columns edited with a source's rows, `[num_rows, width]`, of which only the columns count."""
        return replace(self, inner=self.inner.with_source(source_rows[:, self.start : self.end]))

    def tensors(self) -> dict[str, Tensor]:
        """The inner edit's weights."""
        return self.inner.tensors()

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same columns edited with other weights."""
        return replace(self, inner=self.inner.with_tensors(tensors))

    @cached_property
    def shape_key(self) -> str:
        """Equal for edits of the same columns whose weights can lie side by side."""
        return f"ColumnsEdit({self.start}, {self.end}, {self.inner.shape_key})"

    def digest(self) -> bytes:
        """SHA-256 of the columns and of the inner edit's digest."""
        return hashlib.sha256(f"ColumnsEdit|{self.start}|{self.end}|".encode() + self.inner.digest()).digest()
