"""Addition: a steering vector."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..folded import FoldedEdit
from ..folding import ElementwiseEdit
from .base import Formula, Parameters, to_float32


class Addition(Formula):
    """`h + v`, with v = `vector`.

    Source: pyvene's `AdditionIntervention`.
    """

    id = "addition"
    has_low_rank = False
    has_subspaces = False

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        return {"vector": (hidden_size,)}

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:  # noqa: ARG002
        return {"vector": torch.zeros(hidden_size)}

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:  # noqa: ARG002
        return parameters["vector"].expand_as(rows)

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:  # noqa: ARG002
        return ElementwiseEdit(None, to_float32(parameters)["vector"])
