"""DII, the distributed interchange intervention: move a row, inside a rotated subspace, to where another prompt is."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from ..errors import InterventionSourceError
from ..folded import FoldedEdit
from ..folding import InterchangeEdit, LowRankEdit
from .base import Formula, Parameters, initial_rotation, to_float32


class Dii(Formula):
    """`h + (sR - hR)Rᵀ`, with R = `rotate_layer` orthonormal and s a hidden row of a source prompt.

    `source` s is a stored constant, `[hidden_size]`, or absent: then every request brings a source prompt, whose rows
    take its place. `delta` and `edit` also take one source row for each row, `[num_rows, hidden_size]`, so training
    passes `{"rotate_layer": R, "source": source_rows}`.

    Source: Geiger et al. 2024, arXiv:2303.02536; pyvene's `LowRankRotatedSpaceIntervention`.
    """

    id = "dii"
    has_rotation = True
    optional_parameters = frozenset({"source"})

    def parameter_shapes(self, hidden_size: int, low_rank_dimension: int) -> dict[str, tuple[int, ...]]:
        return {"rotate_layer": (hidden_size, low_rank_dimension), "source": (hidden_size,)}

    def initial_parameters(self, hidden_size: int, low_rank_dimension: int, generator: Generator) -> dict[str, Tensor]:
        return {"rotate_layer": initial_rotation(hidden_size, low_rank_dimension, generator)}

    def needs_source(self, names: Iterable[str]) -> bool:
        return "source" not in names

    def delta(self, rows: Tensor, parameters: Parameters, act: str = "linear") -> Tensor:  # noqa: ARG002
        if "source" not in parameters:
            raise InterventionSourceError(
                "this set stores no source: give it the rows of a source prompt", param="source"
            )
        return interchange(rows, parameters["source"], parameters["rotate_layer"])

    def fold(self, parameters: Parameters, act: str = "linear") -> FoldedEdit:  # noqa: ARG002
        weights = to_float32(parameters)
        transposed = weights["rotate_layer"].T.contiguous()  # [low_rank_dimension, hidden_size]
        if "source" in weights:
            return LowRankEdit(-transposed, transposed @ weights["source"], transposed)
        return InterchangeEdit(transposed, transposed)


def interchange(rows: Tensor, source_rows: Tensor, rotation: Tensor) -> Tensor:
    """What an interchange adds to `rows`; differentiable in all three.

    Semantics:
        delta = (source_rows @ rotation - rows @ rotation) @ rotation.T

    Args:
        rows: `[num_rows, hidden_size]`.
        source_rows: `[num_rows, hidden_size]`, or `[hidden_size]` for all rows; the dtype of `rows`.
        rotation: R, `[hidden_size, low_rank_dimension]` with orthonormal columns; the dtype of `rows`.

    Returns:
        `[num_rows, hidden_size]`.

    Source: Geiger et al. 2024, arXiv:2303.02536, definition 3.
    """
    coefficients: Tensor = source_rows @ rotation - rows @ rotation  # [num_rows, low_rank_dimension]
    return torch.matmul(coefficients, rotation.T)
