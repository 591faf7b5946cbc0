"""The concrete folded edits: what is left of a formula once its weights are known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from .activations import activate
from .errors import InterventionSourceError
from .tensor_edit import TensorEdit, check_dimensions, expand, project, with_rows


@dataclass(frozen=True, eq=False)
class LowRankEdit(TensorEdit):
    """A low-rank formula with linear `act`.

    Semantics:
        delta = (rows @ down.T + bias) @ up

    Args:
        down: `[low_rank_dimension, hidden_size]`, float32.
        bias: `[low_rank_dimension]`, float32.
        up: `[low_rank_dimension, hidden_size]`, float32.

    Source: Wu et al. 2024, arXiv:2404.03592, eq. 4, folded.
    """

    down: Tensor
    bias: Tensor
    up: Tensor

    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`; both `[num_rows, hidden_size]`, float32."""
        return expand(project(rows, self.down, self.bias), self.up)

    def scaled(self, scale: float) -> LowRankEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(self, up=self.up * scale)

    def restricted(self, dimensions: tuple[int, ...]) -> LowRankEdit:
        """The same edit with only these rank dimensions."""
        return with_rows(self, dimensions)


@dataclass(frozen=True, eq=False)
class ActLowRankEdit(TensorEdit):
    """A low-rank formula with a nonlinear `act`, which keeps its two projections apart.

    Semantics:
        delta = (act(rows @ source.T + source_bias) - (rows @ target.T + target_bias)) @ up

    Args:
        source: `[low_rank_dimension, hidden_size]`, float32.
        source_bias: `[low_rank_dimension]`, float32.
        up: `[low_rank_dimension, hidden_size]`, float32.
        act: a name in `ACTIVATIONS`.
        target: what is subtracted, `[low_rank_dimension, hidden_size]`, float32; None when the formula subtracts
            nothing (`direft`, `nodireft`).
        target_bias: `[low_rank_dimension]`, float32; None = 0.
    """

    source: Tensor
    source_bias: Tensor
    up: Tensor
    act: str
    target: Tensor | None = None
    target_bias: Tensor | None = None

    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`; both `[num_rows, hidden_size]`, float32."""
        difference = activate(project(rows, self.source, self.source_bias), self.act)
        if self.target is not None:
            difference = difference - project(rows, self.target)
        if self.target_bias is not None:
            difference = difference - self.target_bias
        return expand(difference, self.up)

    def scaled(self, scale: float) -> ActLowRankEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(self, up=self.up * scale)

    def restricted(self, dimensions: tuple[int, ...]) -> ActLowRankEdit:
        """The same edit with only these rank dimensions."""
        return with_rows(self, dimensions)


@dataclass(frozen=True, eq=False)
class InterchangeEdit(TensorEdit):
    """An interchange that lacks its source: `with_source` makes it the edit of one row.

    Semantics, for a source row s:
        delta = (s @ rotation.T - rows @ rotation.T) @ up

    Args:
        rotation: Rᵀ, `[low_rank_dimension, hidden_size]`, float32.
        up: Rᵀ times the scale, the same shape, float32.
    """

    rotation: Tensor
    up: Tensor

    @property
    def needs_source(self) -> bool:
        return True

    def delta(self, rows: Tensor) -> NoReturn:  # noqa: ARG002
        """Not defined before `with_source`."""
        raise InterventionSourceError("this set needs a source prompt: give one with the request", param="source")

    def scaled(self, scale: float) -> InterchangeEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(self, up=self.up * scale)

    def restricted(self, dimensions: tuple[int, ...]) -> InterchangeEdit:
        """The same edit with only these rank dimensions."""
        return with_rows(self, dimensions)

    def with_source(self, source_rows: Tensor) -> InterchangedEdit:
        """The edit of as many tokens as there are `source_rows`, `[num_rows, hidden_size]` on any device."""
        if not source_rows.shape[0]:  # then of any size
            return InterchangedEdit(-self.rotation, self.rotation.new_empty(0, self.rotation.shape[0]), self.up)
        return InterchangedEdit(-self.rotation, source_rows.to(self.rotation) @ self.rotation.T, self.up)


@dataclass(frozen=True, eq=False)
class InterchangedEdit(LowRankEdit):
    """An interchange with its source: row i of `bias` `[num_tokens, low_rank_dimension]` is the i-th edited token's."""

    @property
    def differs_by_token(self) -> bool:
        return True

    def of_tokens(self, first: int, end: int) -> LowRankEdit:
        """The edit of the tokens `[first, end)`, counted among those that are edited; its `delta` takes just them."""
        return LowRankEdit(self.down, self.bias[first:end], self.up)

    def restricted(self, dimensions: tuple[int, ...]) -> InterchangedEdit:
        """The same edit with only these rank dimensions."""
        check_dimensions(dimensions, self.down.shape[0])
        chosen = list(dimensions)
        return InterchangedEdit(self.down[chosen], self.bias[:, chosen], self.up[chosen])


@dataclass(frozen=True, eq=False)
class ElementwiseEdit(TensorEdit):
    """An edit without a low rank.

    Semantics:
        delta = rows * scale + shift - rows
        delta = shift                       where scale is None

    Args:
        scale: `[hidden_size]`, float32, or None.
        shift: `[hidden_size]`, float32.
    """

    scale: Tensor | None
    shift: Tensor

    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`; both `[num_rows, hidden_size]`, float32."""
        if self.scale is None:
            return self.shift.expand_as(rows)
        return torch.addcmul(self.shift, rows, self.scale - 1.0)

    def scaled(self, scale: float) -> ElementwiseEdit:
        """The same edit with its delta multiplied by `scale`: `a(h*s + t - h) = h*(1 + a(s - 1)) + a*t - h`."""
        multiplier = None if self.scale is None else 1.0 + scale * (self.scale - 1.0)
        return ElementwiseEdit(multiplier, self.shift * scale)


@dataclass(frozen=True, eq=False)
class MlpEdit(TensorEdit):
    """A network of one hidden layer.

    Semantics:
        delta = act(rows @ weight_in.T + bias_in) @ weight_out + bias_out + row_factor * rows

    Args:
        weight_in: `[low_rank_dimension, hidden_size]`, float32.
        bias_in: `[low_rank_dimension]`, float32.
        weight_out: `[low_rank_dimension, hidden_size]`, float32.
        bias_out: `[hidden_size]`, float32.
        act: a name in `ACTIVATIONS`.
        row_factor: 0 adds the network's output to the row, -1 puts it in the row's place.
    """

    weight_in: Tensor
    bias_in: Tensor
    weight_out: Tensor
    bias_out: Tensor
    act: str
    row_factor: float

    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`; both `[num_rows, hidden_size]`, float32."""
        inner = activate(project(rows, self.weight_in, self.bias_in), self.act)
        outputs = expand(inner, self.weight_out) + self.bias_out
        return outputs if self.row_factor == 0.0 else outputs.add_(rows, alpha=self.row_factor)

    def scaled(self, scale: float) -> MlpEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(
            self,
            weight_out=self.weight_out * scale,
            bias_out=self.bias_out * scale,
            row_factor=self.row_factor * scale,
        )
