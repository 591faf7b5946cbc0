"""R out of torch's orthogonal parametrization, and what to do with an R that is not orthonormal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import InterventionImportError, InterventionValueError
from ..validation import COLLAPSED_NORM, ORTHONORMAL_TOLERANCE

_PARAMETRIZED = "parametrizations.weight"


def parametrized_names(prefix: str) -> tuple[str, str]:
    """The two names under which a parametrized weight is stored: the raw tensor, and the base that it turns."""
    return f"{prefix}.{_PARAMETRIZED}.original", f"{prefix}.{_PARAMETRIZED}.0.base"


def take_rotation(state: dict[str, Tensor], prefix: str, source: str) -> Tensor:
    """Take R, `[hidden_size, low_rank_dimension]`, out of a state: stored as it is, or rebuilt.

    Raises:
        InterventionImportError: neither form is there, or it is a form that can't be rebuilt.
    """
    for plain in (prefix, f"{prefix}.weight"):
        if plain in state:
            return state.pop(plain)
    original_name, base_name = parametrized_names(prefix)
    if original_name not in state:
        raise InterventionImportError(f"{source} has no {prefix!r}, which its class always saves", param="source")
    original, base = state.pop(original_name), state.pop(base_name, None)
    is_transposed = original.ndim == 2 and original.shape[0] < original.shape[1]
    rotation = rebuild_rotation(original.T if is_transposed else original, base, source)
    return rotation.to(original.dtype)


def rebuild_rotation(original: Tensor, base: Tensor | None, source: str = "the checkpoint") -> Tensor:
    """The matrix that torch's Householder parametrization stands for; the raw tensor is not it.

    Semantics:
        A = tril(original, -1)
        tau = 2 / (1 + sum over rows of A²)
        R = base @ (householder_product(A, tau) * diag(original).int())

    Args:
        original: `[hidden_size, low_rank_dimension]`, taller than wide.
        base: `[hidden_size, hidden_size]`; None = the identity.
        source: what to call the checkpoint in an error.

    Returns:
        `[hidden_size, low_rank_dimension]`, float32 (float64 where `original` is).

    Raises:
        InterventionImportError: the shapes belong to another parametrization (square weights use matrix exponentials).

    Source: `torch.nn.utils.parametrizations.orthogonal`, the map "householder".
    """
    is_tall = original.ndim == 2 and original.shape[0] > original.shape[1] > 0
    if not is_tall or (base is not None and base.shape != (original.shape[0], original.shape[0])):
        raise InterventionImportError(
            f"{source} holds an orthogonal parametrization of shape {list(original.shape)}, which is not the "
            "Householder form of a tall matrix; save R itself",
            param="source",
        )
    dtype = torch.promote_types(original.dtype, torch.float32)
    values = original.to(dtype)
    below = values.tril(-1)
    tau = 2.0 / (1.0 + (below * below).sum(dim=-2))
    signs = values.diagonal().to(torch.int32).to(dtype)
    rotation: Tensor = torch.linalg.householder_product(below, tau) * signs
    return rotation if base is None else base.to(dtype) @ rotation


def is_orthonormal(rotation: Tensor, source: str) -> bool:
    """Whether R has orthonormal columns, within what its dtype can hold.

    Raises:
        InterventionValueError: a column has (nearly) vanished: the checkpoint can't do what it was trained for.
    """
    columns = rotation.to(torch.float64)
    smallest = float(columns.norm(dim=0).min())
    if smallest < COLLAPSED_NORM:
        raise InterventionValueError(
            f"R of {source} has collapsed: a column has norm {smallest:.3g} instead of 1. Weight decay on the "
            "orthogonal parametrization does this in one step, and the edit does nothing; train again without it",
            param="rotate_layer",
        )
    gram = columns.T @ columns
    error = float((gram - torch.eye(gram.shape[0], dtype=torch.float64)).abs().max())
    return error <= ORTHONORMAL_TOLERANCE[rotation.dtype]


def without_rotation(formula: str, parameters: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """The same function of a row by a formula that does not ask for an orthonormal R.

    With W2 = Rᵀ: loreft and consreft are noreft, direft and lobireft are nodireft; the latter of each pair has W1 = 0.

    Raises:
        InterventionImportError: there is no such formula.
    """
    targets = {"loreft": "noreft", "consreft": "noreft", "direft": "nodireft", "lobireft": "nodireft"}
    if formula not in targets:
        raise InterventionImportError(f"{formula} has no form with an R that is not orthonormal", param="formula")
    rotation = parameters["rotate_layer"]
    projection = rotation.T.contiguous()
    weight = parameters.get("learned_source_weight")
    return targets[formula], {
        "learned_source_weight": torch.zeros_like(projection) if weight is None else weight,
        "learned_source_bias": parameters["learned_source" if weight is None else "learned_source_bias"],
        "proj_weight": projection,
    }
