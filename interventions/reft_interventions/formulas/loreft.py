"""LoReFT: move a row, inside a low-rank orthonormal subspace, to a learned linear function of itself."""

from __future__ import annotations

from torch import Generator, Tensor

from ..activations import activate
from ..folded import FoldedEdit
from ..folding import ActLowRankEdit, LowRankEdit
from .base import Formula, Parameters, initial_bias, initial_projection, initial_rotation, to_float32


class Loreft(Formula):
    """`h + (act(hWᵀ + b) - hR)Rᵀ`, with R = `rotate_layer` orthonormal.

    Source: Wu et al. 2024, arXiv:2404.03592, eq. 4.
    """

    id = "loreft"
    has_rotation = True
    has_act = True

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        return {
            "rotate_layer": (hidden_size, low_rank_dimension),
            "learned_source_weight": (low_rank_dimension, hidden_size),
            "learned_source_bias": (low_rank_dimension,),
        }

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        return {
            "rotate_layer": initial_rotation(hidden_size, low_rank_dimension, generator),
            "learned_source_weight": initial_projection(hidden_size, low_rank_dimension, generator),
            "learned_source_bias": initial_bias(hidden_size, low_rank_dimension, generator),
        }

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:
        rotation = parameters["rotate_layer"]
        source = rows @ parameters["learned_source_weight"].T + parameters["learned_source_bias"]
        return (activate(source, act) - rows @ rotation) @ rotation.T

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:
        weights = to_float32(parameters)
        transposed = weights["rotate_layer"].T.contiguous()  # [low_rank_dimension, hidden_size]
        source, bias = weights["learned_source_weight"], weights["learned_source_bias"]
        if act == "linear":
            return LowRankEdit(source - transposed, bias, transposed)
        return ActLowRankEdit(source, bias, transposed, act, target=transposed)
