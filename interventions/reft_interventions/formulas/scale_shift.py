"""Scale and shift (RED); with scale 0 it replaces the row by a constant."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..folded import FoldedEdit
from ..folding import ElementwiseEdit
from .base import Formula, Parameters, to_float32


class ScaleShift(Formula):
    """`h * s + t`, elementwise, with s = `scale` and t = `shift`.

    Source: RED, Wu et al. 2024, arXiv:2402.15179.
    """

    id = "scale_shift"
    has_low_rank = False
    has_subspaces = False

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:  # noqa: ARG002
        return {"scale": (hidden_size,), "shift": (hidden_size,)}

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:  # noqa: ARG002
        return {"scale": torch.ones(hidden_size), "shift": torch.zeros(hidden_size)}

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:  # noqa: ARG002
        return rows * parameters["scale"] + parameters["shift"] - rows

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:  # noqa: ARG002
        weights = to_float32(parameters)
        return ElementwiseEdit(weights["scale"], weights["shift"])
