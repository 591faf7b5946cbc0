"""LobiReFT: add a learned vector of a low-rank orthonormal subspace (a low-rank bias)."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from ..folded import FoldedEdit
from ..folding import LowRankEdit
from .base import Formula, Parameters, initial_rotation, to_float32


class Lobireft(Formula):
    """`h + sRᵀ`, with R = `rotate_layer` orthonormal and s = `learned_source`.

    Source: pyreft's `LobireftIntervention`.
    """

    id = "lobireft"
    has_rotation = True

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        return {"rotate_layer": (hidden_size, low_rank_dimension), "learned_source": (low_rank_dimension,)}

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        return {
            "rotate_layer": initial_rotation(hidden_size, low_rank_dimension, generator),
            "learned_source": torch.rand(low_rank_dimension, generator=generator),
        }

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:  # noqa: ARG002
        return (parameters["learned_source"] @ parameters["rotate_layer"].T).expand_as(rows)

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:  # noqa: ARG002
        weights = to_float32(parameters)
        transposed = weights["rotate_layer"].T.contiguous()  # [low_rank_dimension, hidden_size]
        # A low-rank edit with a zero projection, so that it shares the one kernel of its family.
        return LowRankEdit(torch.zeros_like(transposed), weights["learned_source"], transposed)
