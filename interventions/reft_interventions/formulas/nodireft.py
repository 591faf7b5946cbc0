"""NodiReFT, the paper's DiReFT: add a low-rank linear function of the row, like a LoRA on hidden states."""

from __future__ import annotations

from torch import Generator, Tensor

from ..activations import activate
from ..folded import FoldedEdit
from ..folding import ActLowRankEdit, LowRankEdit
from .base import Formula, Parameters, initial_bias, initial_projection, to_float32


class Nodireft(Formula):
    """`h + act(hW1ᵀ + b1)W2`, with W1, b1 = `learned_source_*` and W2 = `proj_weight`.

    Source: Wu et al. 2024, arXiv:2404.03592, eq. 5; pyreft's `NodireftIntervention`.
    """

    id = "nodireft"
    has_act = True

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        return {
            "learned_source_weight": (low_rank_dimension, hidden_size),
            "learned_source_bias": (low_rank_dimension,),
            "proj_weight": (low_rank_dimension, hidden_size),
        }

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        return {
            "learned_source_weight": initial_projection(hidden_size, low_rank_dimension, generator),
            "learned_source_bias": initial_bias(hidden_size, low_rank_dimension, generator),
            "proj_weight": initial_projection(hidden_size, low_rank_dimension, generator),
        }

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:
        source = rows @ parameters["learned_source_weight"].T + parameters["learned_source_bias"]
        return activate(source, act) @ parameters["proj_weight"]

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:
        weights = to_float32(parameters)
        source, bias, up = weights["learned_source_weight"], weights["learned_source_bias"], weights["proj_weight"]
        if act == "linear":
            return LowRankEdit(source, bias, up)
        return ActLowRankEdit(source, bias, up, act)
