"""The concrete folded edits: what is left of a formula once its weights are known."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import NoReturn, Self, TypeVar

import torch
from torch import Tensor

from .activations import activate
from .errors import InterventionSourceError, InterventionSubspaceError


@dataclass(frozen=True, eq=False)
class TensorEdit(ABC):
    """What every folded edit shares: its weights are its float32 tensor fields.

    Each of them may have one more dimension in front, `[num_rows, ...]`: then every row has weights of its own
    (see `ops.EditStacks`), and `delta` takes exactly `num_rows` rows. `needs_source`: it can't run before
    `with_source`. `differs_by_token`: each edited token of a prompt has an edit of its own, which `of_tokens` selects.
    """

    @property
    def needs_source(self) -> bool:
        return False

    @property
    def differs_by_token(self) -> bool:
        return False

    @abstractmethod
    def delta(self, rows: Tensor) -> Tensor:
        """What to add to `rows`; both `[num_rows, hidden_size]`, float32."""

    @abstractmethod
    def scaled(self, scale: float) -> TensorEdit:
        """The same edit with its delta multiplied by `scale`."""

    def restricted(self, dimensions: tuple[int, ...]) -> TensorEdit:  # noqa: ARG002
        """The same edit with only these rank dimensions.

        Raises:
            InterventionSubspaceError: it has none to choose from, or one is out of range.
        """
        raise InterventionSubspaceError(
            "the set holds an edit without rank dimensions to choose from: leave out subspaces", param="subspaces"
        )

    def of_tokens(self, first: int, end: int) -> TensorEdit:  # noqa: ARG002
        """The edit of the tokens `[first, end)`, counted among those that are edited, where `differs_by_token`."""
        return self

    def with_source(self, source_rows: Tensor) -> TensorEdit:  # noqa: ARG002
        """The edit with the rows of a source prompt, `[num_rows, hidden_size]`, one for each token that is edited.

        Raises:
            InterventionSourceError: the edit takes none.
        """
        raise InterventionSourceError("the set takes no source: leave it out", param="source")

    def tensors(self) -> dict[str, Tensor]:
        """The weights by field name, absent ones left out."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def with_weights(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same edit with each of its weights replaced by what `function` makes of it."""
        return self.with_tensors({name: function(tensor) for name, tensor in self.tensors().items()})

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same edit with other weights, by the names of `tensors`."""
        return replace(self, **tensors)

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    @cached_property
    def shape_key(self) -> str:
        """Equal for edits whose weights can lie side by side: same kind, options and shapes."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        options = (f"{name}={tuple(v.shape) if isinstance(v, Tensor) else v!r}" for name, v in values)
        return f"{type(self).__name__}({', '.join(options)})"

    def digest(self) -> bytes:
        """SHA-256 of the edit's kind, options and weights: equal digests mean equal behaviour."""
        hasher = hashlib.sha256(type(self).__name__.encode())
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                hasher.update(f"|{field.name}:{tuple(value.shape)}:".encode())
                hasher.update(value.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
            else:
                hasher.update(f"|{field.name}={value!r}".encode())
        return hasher.digest()


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
        return _expand(_project(rows, self.down, self.bias), self.up)

    def scaled(self, scale: float) -> LowRankEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(self, up=self.up * scale)

    def restricted(self, dimensions: tuple[int, ...]) -> LowRankEdit:
        """The same edit with only these rank dimensions."""
        return _with_rows(self, dimensions)


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
        difference = activate(_project(rows, self.source, self.source_bias), self.act)
        if self.target is not None:
            difference = difference - _project(rows, self.target)
        if self.target_bias is not None:
            difference = difference - self.target_bias
        return _expand(difference, self.up)

    def scaled(self, scale: float) -> ActLowRankEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(self, up=self.up * scale)

    def restricted(self, dimensions: tuple[int, ...]) -> ActLowRankEdit:
        """The same edit with only these rank dimensions."""
        return _with_rows(self, dimensions)


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
        return _with_rows(self, dimensions)

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


def check_dimensions(dimensions: Sequence[int], low_rank_dimension: int) -> None:
    """Refuse rank dimensions that an edit does not have.

    Raises:
        InterventionSubspaceError: none is chosen, one is chosen twice or out of range.
    """
    if not dimensions:
        raise InterventionSubspaceError(
            "subspaces is empty: name a dimension, leave it out, or set scale to 0", param="subspaces"
        )
    for dimension in dimensions:
        if not 0 <= dimension < low_rank_dimension:
            raise InterventionSubspaceError(
                f"subspaces names dimension {dimension}, the set has 0 to {low_rank_dimension - 1}", param="subspaces"
            )
    if len(set(dimensions)) != len(dimensions):
        twice = next(one for one in dimensions if list(dimensions).count(one) > 1)
        raise InterventionSubspaceError(f"subspaces names dimension {twice} twice: name each once", param="subspaces")


_Edit = TypeVar("_Edit", bound=TensorEdit)


def _with_rows(edit: _Edit, dimensions: tuple[int, ...]) -> _Edit:
    """An edit with some rows of each weight, where the rank dimension is the first of all of them."""
    tensors = edit.tensors()
    check_dimensions(dimensions, next(iter(tensors.values())).shape[0])
    return replace(edit, **{name: tensor[list(dimensions)] for name, tensor in tensors.items()})


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
        inner = activate(_project(rows, self.weight_in, self.bias_in), self.act)
        outputs = _expand(inner, self.weight_out) + self.bias_out
        return outputs if self.row_factor == 0.0 else outputs.add_(rows, alpha=self.row_factor)

    def scaled(self, scale: float) -> MlpEdit:
        """The same edit with its delta multiplied by `scale`."""
        return replace(
            self,
            weight_out=self.weight_out * scale,
            bias_out=self.bias_out * scale,
            row_factor=self.row_factor * scale,
        )


def _project(rows: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """`weights @ row + bias` for each row, `[num_rows, low_rank_dimension]`; three-dimensional weights are per row."""
    if weights.ndim == 2:
        return rows @ weights.T if bias is None else torch.addmm(bias, rows, weights.T)
    # Rows on the left, `[n, 1, d] @ [n, d, r]`: four times as fast on a CPU as `[n, r, d] @ [n, d, 1]`.
    left, right = rows[:, None], weights.transpose(1, 2)
    return (torch.bmm(left, right) if bias is None else torch.baddbmm(bias[:, None], left, right))[:, 0]


def _expand(coefficients: Tensor, up: Tensor) -> Tensor:
    """`coefficients[t] @ up` for each row, `[num_rows, hidden_size]`; an `up` of three dimensions is per row."""
    return coefficients @ up if up.ndim == 2 else torch.bmm(coefficients[:, None], up)[:, 0]
