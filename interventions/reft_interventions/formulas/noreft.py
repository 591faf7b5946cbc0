"""NoReFT: LoReFT without the orthonormality constraint."""

from __future__ import annotations

from torch import Generator, Tensor

from ..activations import activate
from ..folded import FoldedEdit
from ..folding import ActLowRankEdit, LowRankEdit
from .base import Formula, Parameters, initial_bias, initial_projection, to_float32


class Noreft(Formula):
    """`h + (act(hW1ᵀ + b1) - (hW2ᵀ + b2))W2`, W1, b1 = `learned_source_*`, W2, b2 = `proj_*`; b2 may be absent.

    Source: Wu et al. 2024, arXiv:2404.03592, appendix; pyreft's `NoreftIntervention`.
    """

    id = "noreft"
    has_act = True
    optional_parameters = frozenset({"proj_bias"})

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        return {
            "learned_source_weight": (low_rank_dimension, hidden_size),
            "learned_source_bias": (low_rank_dimension,),
            "proj_weight": (low_rank_dimension, hidden_size),
            "proj_bias": (low_rank_dimension,),
        }

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        return {
            "learned_source_weight": initial_projection(hidden_size, low_rank_dimension, generator),
            "learned_source_bias": initial_bias(hidden_size, low_rank_dimension, generator),
            "proj_weight": initial_projection(hidden_size, low_rank_dimension, generator),
        }

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:
        projection = parameters["proj_weight"]
        source = rows @ parameters["learned_source_weight"].T + parameters["learned_source_bias"]
        target = rows @ projection.T
        if "proj_bias" in parameters:
            target = target + parameters["proj_bias"]
        return (activate(source, act) - target) @ projection

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:
        weights = to_float32(parameters)
        source, bias = weights["learned_source_weight"], weights["learned_source_bias"]
        projection, projection_bias = weights["proj_weight"], weights.get("proj_bias")
        if act == "linear":
            folded_bias = bias if projection_bias is None else bias - projection_bias
            return LowRankEdit(source - projection, folded_bias, projection)
        return ActLowRankEdit(source, bias, projection, act, target=projection, target_bias=projection_bias)
