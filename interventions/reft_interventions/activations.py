"""The activations that a formula may put between its two projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from .errors import InterventionManifestError

Activation = Literal["linear", "relu", "gelu", "silu", "tanh", "sigmoid"]


def _linear(values: Tensor) -> Tensor:
    return values


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "linear": _linear,
        "relu": functional.relu,
        "gelu": functional.gelu,
        "silu": functional.silu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
)


def activate(values: Tensor, act: str) -> Tensor:
    """Apply the activation named `act` elementwise; `gelu` is the exact one (erf), as in pyreft.

    Raises:
        InterventionManifestError: there is no such activation.
    """
    function = ACTIVATIONS.get(act)
    if function is None:
        raise InterventionManifestError(
            f"act {act!r} is unknown; use one of {', '.join(get_args(Activation))}", param="act"
        )
    return function(values)
