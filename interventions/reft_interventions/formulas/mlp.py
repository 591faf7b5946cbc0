"""A small network on the row: what the literature calls representation adjustment."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Generator, Tensor

from ..activations import activate
from ..folded import FoldedEdit
from ..folding import MlpEdit
from .base import Formula, Parameters, initial_bias, initial_projection, initial_rotation, to_float32


class Mlp(Formula):
    """`W_out act(h W_inᵀ + b_in) + b_out` in place of h; `low_rank_dimension` is the bottleneck.

    Training starts at the orthogonal projection of the row onto as many random directions as the bottleneck has: with
    linear `act` the row's nearest copy that fits through. No start of this formula is the base model's own output.
    """

    id = "mlp"
    has_subspaces = False
    has_act = True
    keeps_row: ClassVar[bool] = False

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        return {
            "weight_in": (low_rank_dimension, hidden_size),
            "bias_in": (low_rank_dimension,),
            "weight_out": (hidden_size, low_rank_dimension),
            "bias_out": (hidden_size,),
        }

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        directions = initial_rotation(hidden_size, low_rank_dimension, generator)
        return {
            "weight_in": directions.T.contiguous(),
            "bias_in": torch.zeros(low_rank_dimension),
            "weight_out": directions,
            "bias_out": torch.zeros(hidden_size),
        }

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:
        inner = activate(rows @ parameters["weight_in"].T + parameters["bias_in"], act)
        outputs = inner @ parameters["weight_out"].T + parameters["bias_out"]
        return outputs if self.keeps_row else outputs - rows

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:
        weights = to_float32(parameters)
        return MlpEdit(
            weights["weight_in"],
            weights["bias_in"],
            weights["weight_out"].T.contiguous(),
            weights["bias_out"],
            act,
            row_factor=0.0 if self.keeps_row else -1.0,
        )


class MlpResidual(Mlp):
    """`h + W_out act(h W_inᵀ + b_in) + b_out`. Training starts at the identity: W_out and b_out are 0."""

    id = "mlp_residual"
    keeps_row = True

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        return {
            "weight_in": initial_projection(hidden_size, low_rank_dimension, generator),
            "bias_in": initial_bias(hidden_size, low_rank_dimension, generator),
            "weight_out": torch.zeros(hidden_size, low_rank_dimension),
            "bias_out": torch.zeros(hidden_size),
        }
