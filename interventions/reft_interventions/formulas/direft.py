"""DiReFT as pyreft names it: write a learned linear function of the row into an orthonormal subspace."""

from __future__ import annotations

from torch import Generator, Tensor

from ..activations import activate
from ..folded import FoldedEdit
from ..folding import ActLowRankEdit, LowRankEdit
from .base import Formula, Parameters, initial_bias, initial_projection, initial_rotation, to_float32


class Direft(Formula):
    """`h + act(hWᵀ + b)Rᵀ`, with R = `rotate_layer` orthonormal.

    The paper's "DiReFT" has no orthonormal R: that one is `nodireft`.

    Source: pyreft's `DireftIntervention`.
    """

    id = "direft"
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
        source = rows @ parameters["learned_source_weight"].T + parameters["learned_source_bias"]
        return activate(source, act) @ parameters["rotate_layer"].T

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:
        weights = to_float32(parameters)
        transposed = weights["rotate_layer"].T.contiguous()  # [low_rank_dimension, hidden_size]
        source, bias = weights["learned_source_weight"], weights["learned_source_bias"]
        if act == "linear":
            return LowRankEdit(source, bias, transposed)
        return ActLowRankEdit(source, bias, transposed, act)
