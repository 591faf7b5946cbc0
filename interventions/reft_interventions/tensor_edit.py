"""What all folded edits share: float32 weights that can be counted, hashed, scaled, cut and moved."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Self, TypeVar

import torch
from torch import Tensor

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


def with_rows(edit: _Edit, dimensions: tuple[int, ...]) -> _Edit:
    """An edit with some rows of each weight, where the rank dimension is the first of all of them."""
    tensors = edit.tensors()
    check_dimensions(dimensions, next(iter(tensors.values())).shape[0])
    return replace(edit, **{name: tensor[list(dimensions)] for name, tensor in tensors.items()})


def project(rows: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """`weights @ row + bias` for each row, `[num_rows, low_rank_dimension]`; three-dimensional weights are per row."""
    if weights.ndim == 2:
        return rows @ weights.T if bias is None else torch.addmm(bias, rows, weights.T)
    # Rows on the left, `[n, 1, d] @ [n, d, r]`: four times as fast on a CPU as `[n, r, d] @ [n, d, 1]`.
    left, right = rows[:, None], weights.transpose(1, 2)
    return (torch.bmm(left, right) if bias is None else torch.baddbmm(bias[:, None], left, right))[:, 0]


def expand(coefficients: Tensor, up: Tensor) -> Tensor:
    """`coefficients[t] @ up` for each row, `[num_rows, hidden_size]`; an `up` of three dimensions is per row."""
    return coefficients @ up if up.ndim == 2 else torch.bmm(coefficients[:, None], up)[:, 0]
