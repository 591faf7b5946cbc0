"""What every formula provides, and the initial values that they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..errors import InterventionSubspaceError
from ..folded import FoldedEdit
from ..tensor_edit import check_dimensions

Parameters = Mapping[str, Tensor]


class Formula(ABC):
    """A pure function of a hidden row, by the names and shapes of its parameters.

    `id` is what a manifest names. `has_rotation`: `rotate_layer` `[hidden_size, low_rank_dimension]` has orthonormal
    columns. `has_low_rank`: the parameters depend on `low_rank_dimension`, which is 0 otherwise. `has_subspaces`: the
    delta is a sum over the rank dimensions, any of which can be left out. `has_act`: an activation other than `linear`
    is allowed.
    """

    id: ClassVar[str]
    has_rotation: ClassVar[bool] = False
    has_low_rank: ClassVar[bool] = True
    has_subspaces: ClassVar[bool] = True
    has_act: ClassVar[bool] = False
    optional_parameters: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter, optional ones included."""

    @abstractmethod
    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        """Where training starts: float32 on the CPU, drawn from `generator`; optional parameters left out."""

    @abstractmethod
    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:
        """What the formula adds to `rows`; rows, parameters and result share one dtype; `[num_rows, hidden_size]`."""

    @abstractmethod
    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:
        """The same function with its weights combined in float32, whatever dtype they are stored in."""

    def needs_source(self, names: Iterable[str]) -> bool:  # noqa: ARG002
        """Whether a set with the tensors `names` takes its source from a prompt of the request."""
        return False

    def restricted(self, parameters: Parameters, dimensions: Sequence[int]) -> dict[str, Tensor]:
        """The parameters with only these rank dimensions, in this order; gradients flow through.

        Raises:
            InterventionSubspaceError: the formula has no rank dimensions to choose from, or one is out of range.
        """
        if not self.has_subspaces:
            raise InterventionSubspaceError(f"formula {self.id!r} has no rank dimensions: leave out subspaces")
        one, two = self.parameter_shapes(1, 2), self.parameter_shapes(1, 3)
        axes = {
            name: [axis for axis, size in enumerate(shape) if size != two[name][axis]] for name, shape in one.items()
        }
        chosen: dict[str, Tensor] = {}
        for name, value in parameters.items():
            for axis in axes[name]:
                check_dimensions(dimensions, value.shape[axis])
                value = value.index_select(axis, torch.tensor(list(dimensions), device=value.device))
            chosen[name] = value
        return chosen

    def edit(self, hidden: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:
        """The edited rows, differentiable in `hidden` and `parameters`.

        Args:
            hidden: `[num_rows, hidden_size]`, any floating dtype; the delta is computed in float32 (float64 for
                float64 rows) and added in the dtype of `hidden`.
            parameters: as in `parameter_shapes`, any floating dtype.
            act: a name in `ACTIVATIONS`.

        Returns:
            `[num_rows, hidden_size]`, the dtype of `hidden`.
        """
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        cast = {name: value.to(dtype) for name, value in parameters.items()}
        return hidden + self.delta(hidden.to(dtype), cast, act).to(hidden.dtype)


def to_float32(parameters: Parameters) -> dict[str, Tensor]:
    """The parameters detached and in float32, for folding."""
    return {name: value.detach().to(torch.float32) for name, value in parameters.items()}


def initial_rotation(hidden_size: int, low_rank_dimension: int, generator: Generator) -> Tensor:
    """A random `[hidden_size, low_rank_dimension]` float32 matrix with orthonormal columns."""
    gaussian = torch.randn(hidden_size, low_rank_dimension, generator=generator, dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(gaussian).Q
    return rotation.to(torch.float32).contiguous()


def initial_projection(hidden_size: int, low_rank_dimension: int, generator: Generator) -> Tensor:
    """A `[low_rank_dimension, hidden_size]` float32 matrix, uniform in ±1/sqrt(hidden_size) like `nn.Linear`'s."""
    bound = 1 / math.sqrt(hidden_size)
    return (torch.rand(low_rank_dimension, hidden_size, generator=generator) * 2 - 1) * bound


def initial_bias(hidden_size: int, low_rank_dimension: int, generator: Generator) -> Tensor:
    """A `[low_rank_dimension]` float32 vector, uniform in ±1/sqrt(hidden_size) like `nn.Linear`'s."""
    bound = 1 / math.sqrt(hidden_size)
    return (torch.rand(low_rank_dimension, generator=generator) * 2 - 1) * bound
