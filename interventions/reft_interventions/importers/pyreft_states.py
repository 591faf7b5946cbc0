"""From a pyreft or pyvene class and its state dict to a formula and its parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from ..errors import InterventionImportError
from .options import Missing
from .rotation import parametrized_names, take_rotation

Parameters = dict[str, Tensor]
_State = dict[str, Tensor]

FORMULA_BY_CLASS: Mapping[str, str] = MappingProxyType(
    {
        "LoreftIntervention": "loreft",
        "ConditionedSourceLowRankRotatedSpaceIntervention": "loreft",
        "SubloreftIntervention": "loreft",
        "NoreftIntervention": "noreft",
        "ConditionedSourceLowRankIntervention": "noreft",
        "ConsreftIntervention": "consreft",
        "LobireftIntervention": "lobireft",
        "DireftIntervention": "direft",
        "NodireftIntervention": "nodireft",
        "LowRankRotatedSpaceIntervention": "dii",
        "AdditionIntervention": "addition",
        "SubtractionIntervention": "subtraction",
        "VanillaIntervention": "replacement",
        "ZeroIntervention": "zero",
    }
)
"""By the last word of the type string. `subtraction`, `replacement` and `zero` are cases of our formulas."""


def formula_of_type(type_text: str, key: str) -> str:
    """The formula that a `config.json`'s type string means; the class it names is never imported.

    Raises:
        InterventionImportError: a class that has no equal here.
    """
    match = re.fullmatch(r"(?:<class ')?([\w.]+)(?:'>)?", type_text.strip())
    name = match[1].rpartition(".")[2] if match else type_text
    if name not in FORMULA_BY_CLASS:
        raise InterventionImportError(
            f"{key} is a {name[:80]!r}, which has no equal here; importable are {', '.join(FORMULA_BY_CLASS)}",
            param="source",
        )
    return FORMULA_BY_CLASS[name]


def formula_of_state(state: Mapping[str, Tensor], chosen: str | None, missing: Missing) -> str | None:
    """The formula that fits the names in a state dict, for folders without a `config.json`.

    Args:
        state: the state dict.
        chosen: the formula that the user named; it decides where the names fit several.
        missing: told when they do, and nothing was named.

    Raises:
        InterventionImportError: the names fit nothing.
    """
    names = set(state) - {"embed_dim", "interchange_dim"}
    has_rotation = bool(names & {"rotate_layer", *parametrized_names("rotate_layer")})
    if "weight" in names and has_rotation:
        fits: tuple[str, ...] = ("loreft",)
    elif "proj_layer.weight" in names:
        fits = ("noreft", "nodireft")
    elif "learned_source.weight" in names and has_rotation:
        fits = ("direft", "loreft")
    elif "learned_source" in names and has_rotation:
        fits = ("consreft", "lobireft")
    elif has_rotation:
        fits = ("dii",)
    elif "source_representation" in names:
        fits = ("addition", "replacement", "subtraction")
    else:
        raise InterventionImportError(
            f"a state dict with {', '.join(sorted(names))[:200] or 'no tensors'} belongs to no known intervention",
            param="source",
        )
    if len(fits) == 1:
        return fits[0]
    if chosen in fits:
        return chosen
    missing.add("--formula", f"no config.json, and the tensors fit {' and '.join(fits)}")
    return None


def parameters_of(formula: str, state: Mapping[str, Tensor], width: int | None, source: str) -> tuple[str, Parameters]:
    """Our formula and its parameters.

    Args:
        formula: a value of `FORMULA_BY_CLASS`.
        state: the state dict; the buffers `embed_dim` and `interchange_dim` say nothing new.
        width: size of the edited row; needed by `zero`, which saves nothing.
        source: what to call the checkpoint in an error.

    Raises:
        InterventionImportError: a tensor is missing or left over, or the class needs a source prompt.
    """
    rest = {name: tensor for name, tensor in state.items() if name != "embed_dim"}
    interchange_dim = rest.pop("interchange_dim", None)
    dimensions = None if interchange_dim is None or interchange_dim.ndim else int(interchange_dim)
    if formula in ("addition", "subtraction", "replacement", "zero"):
        result = _constant(formula, rest, width, dimensions, source)
    else:
        result = formula, _READERS[formula](rest, source)
    if rest:
        raise InterventionImportError(
            f"{source} holds {', '.join(sorted(rest))[:200]}, which {formula} does not have; its class may be another "
            "one of the same name",
            param="source",
        )
    return result


def _take(state: _State, source: str, *names: str) -> Tensor:
    for name in names:
        if name in state:
            return state.pop(name)
    raise InterventionImportError(f"{source} has no tensor {names[0]!r}", param="source")


def _linear(state: _State, source: str) -> Parameters:
    """W and b: LoReFT saves them without a prefix, since March 2024; the other classes always with one."""
    return {
        "learned_source_weight": _take(state, source, "learned_source.weight", "weight"),
        "learned_source_bias": _take(state, source, "learned_source.bias", "bias"),
    }


def _rotated(state: _State, source: str) -> Parameters:
    return {"rotate_layer": take_rotation(state, "rotate_layer", source), **_linear(state, source)}


def _noreft(state: _State, source: str) -> Parameters:
    parameters = {"proj_weight": _take(state, source, "proj_layer.weight"), **_linear(state, source)}
    bias = state.pop("proj_layer.bias", None)
    return parameters if bias is None else {**parameters, "proj_bias": bias}


def _nodireft(state: _State, source: str) -> Parameters:
    state.pop("proj_layer.bias", None)  # saved, but its class multiplies by the weight alone
    return {"proj_weight": _take(state, source, "proj_layer.weight"), **_linear(state, source)}


def _subspace_constant(state: _State, source: str) -> Parameters:
    return {
        "rotate_layer": take_rotation(state, "rotate_layer", source),
        "learned_source": _take(state, source, "learned_source"),
    }


def _dii(state: _State, source: str) -> Parameters:
    parameters = {"rotate_layer": take_rotation(state, "rotate_layer", source)}
    stored = state.pop("source_representation", None)
    return parameters if stored is None else {**parameters, "source": stored.reshape(-1)}


_READERS: Mapping[str, Callable[[_State, str], Parameters]] = MappingProxyType(
    {
        "loreft": _rotated,
        "direft": _rotated,
        "noreft": _noreft,
        "nodireft": _nodireft,
        "consreft": _subspace_constant,
        "lobireft": _subspace_constant,
        "dii": _dii,
    }
)


def _constant(
    formula: str, state: _State, width: int | None, dimensions: int | None, source: str
) -> tuple[str, Parameters]:
    """pyvene's interventions by a stored row `v`; it may be limited to the first `dimensions` entries."""
    if formula == "zero":
        state.pop("source_representation", None)
        if width is None:
            raise InterventionImportError(
                f"{source} does not say how wide its row is; name the model with --base-model", param="base_model"
            )
        vector = torch.zeros(width)
    else:
        if "source_representation" not in state:
            raise InterventionImportError(
                f"{source} has no source_representation: it takes its row from a source prompt, which only dii can",
                param="source",
            )
        vector = state.pop("source_representation").reshape(-1)
    is_edited = torch.arange(vector.numel()) < (vector.numel() if dimensions is None else dimensions)
    vector = vector * is_edited.to(vector.dtype)
    if formula in ("addition", "subtraction"):
        return "addition", {"vector": vector if formula == "addition" else -vector}
    return "scale_shift", {"scale": (~is_edited).to(vector.dtype), "shift": vector}
