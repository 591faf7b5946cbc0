"""ReFT folders of the `adapters` library: `adapter_config.json` and `pytorch_adapter.bin` or `adapter.safetensors`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor

from ..activations import ACTIVATIONS, Activation
from ..errors import InterventionImportError, InterventionManifestError
from ..manifest import parse_json
from ..positions import Part
from .draft import Draft, DraftEdit
from .options import ImportOptions
from .rotation import take_rotation
from .tensor_files import read_state_dict

_CONFIG_FILE = "adapter_config.json"
_TENSOR_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
_NAME = re.compile(
    r"(?:[\w.]+\.)?(?:layers?|h)\.(?P<layer>[0-9]+)\.reft_layer\.refts\.(?P<adapter>.+)\.units\.(?P<unit>[01])\."
    r"(?P<rest>(?:learned_source|projection)\..+)"
)
_ACT_NAMES: Mapping[str, Activation] = MappingProxyType({"swish": "silu", "identity": "linear"})
_DIFFERENCE = (
    "the adapters library also edits, again and again, the tokens that it generates with a KV cache; "
    "the imported set edits the prompt alone, as its training did"
)


def is_adapter_folder(path: Path) -> bool:
    """Whether the adapters library wrote this folder."""
    return (path / _CONFIG_FILE).is_file()


def read_adapter(folder: Path, options: ImportOptions) -> Draft:
    """Read a LoReFT, NoReFT or DiReFT folder.

    Raises:
        InterventionImportError: another kind of adapter, or tensors that don't fit the configuration.
    """
    config = _read_config(folder / _CONFIG_FILE)
    draft = Draft("adapters", [])
    formula = _formula(config, options, draft)
    act = _act(config)
    states = _states(folder)
    num_prefix, num_suffix = _count(config, "prefix_positions"), _count(config, "suffix_positions")
    is_tied = bool(config.get("tied_weights"))
    for (layer, unit), state in sorted(states.items()):
        place = _place(unit, num_prefix, num_suffix, is_tied=is_tied)
        if place is None or formula is None:
            continue
        part, positions = place
        parameters = _parameters(state, formula, f"layer {layer}")
        draft.edits.append(DraftEdit(layer, "block_output", formula, parameters, act, part, positions))
    if any(edit.part != "both" for edit in draft.edits):
        draft.notes.append(
            f"in prompts shorter than {2 * max(num_prefix, num_suffix)} tokens the ends are halved; the adapters "
            "library lets them overlap there"
        )
    draft.notes.append(_DIFFERENCE)
    return draft


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except InterventionManifestError as error:
        raise InterventionImportError(f"{path.name} can't be read: {error.message}", param="source") from error
    config = value.get("config") if isinstance(value, dict) else None
    if not isinstance(config, dict) or config.get("architecture") != "reft":
        kind = config.get("architecture") if isinstance(config, dict) else None
        raise InterventionImportError(
            f"{path.name} describes an adapter of kind {str(kind)[:40]!r}, not ReFT", param="source"
        )
    return config


def _formula(config: Mapping[str, Any], options: ImportOptions, draft: Draft) -> str | None:
    """Whether the projection is subtracted (NoReFT) or not (DiReFT) is in the class that trained, never in the file."""
    if config.get("orthogonality"):
        return options.formula or "loreft"
    if "subtract_projection" in config:
        return "noreft" if config["subtract_projection"] else "nodireft"
    if options.formula is None:
        draft.missing.add("--formula", "adapter_config.json does not say: noreft for a NoReFT, nodireft for a DiReFT")
    return options.formula


def _act(config: Mapping[str, Any]) -> Activation:
    name = str(config.get("non_linearity") or "linear").lower()
    name = _ACT_NAMES.get(name, name)
    if name not in ACTIVATIONS:
        raise InterventionImportError(f"non_linearity {name[:40]!r} has no equal here", param="act")
    return cast(Activation, name)


def _count(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if type(value) is not int or not 0 <= value <= 4096:
        raise InterventionImportError(f"{_CONFIG_FILE} has no sound {name}", param="source")
    return value


def _states(folder: Path) -> dict[tuple[int, int], dict[str, Tensor]]:
    """The tensors by layer and unit (0 is the prefix's or the tied one, 1 the suffix's)."""
    path = next((folder / name for name in _TENSOR_FILES if (folder / name).is_file()), None)
    if path is None:
        raise InterventionImportError(f"the folder has none of {', '.join(_TENSOR_FILES)}", param="source")
    states: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in read_state_dict(path).items():
        match = _NAME.fullmatch(name)
        if match is None:
            raise InterventionImportError(f"{path.name} holds {name[:120]!r}, which no ReFT has", param="source")
        states.setdefault((int(match["layer"]), int(match["unit"])), {})[match["rest"]] = tensor
    return states


def _place(unit: int, num_prefix: int, num_suffix: int, *, is_tied: bool) -> tuple[Part, str | tuple[int, ...]] | None:
    """Part and positions of a unit; None for one that edits nothing (saved all the same).

    Unlike pyreft, short prompts don't shorten the ends, they overlap: explicit indices say that exactly, and tied
    units edit a token in both ends once. Only untied ends need the string form, which keeps them apart.
    """
    prefix, suffix = tuple(range(num_prefix)), tuple(range(-num_suffix, 0))
    if is_tied:
        return ("both", prefix + suffix) if prefix + suffix else None
    if num_prefix and num_suffix:
        return ("suffix" if unit else "prefix"), f"f{num_prefix}+l{num_suffix}"
    own = suffix if unit else prefix
    return ("both", own) if own else None


def _parameters(state: dict[str, Tensor], formula: str, source: str) -> dict[str, Tensor]:
    rest = dict(state)
    parameters = {
        "learned_source_weight": rest.pop("learned_source.weight"),
        "learned_source_bias": rest.pop("learned_source.bias"),
    }
    if formula in ("loreft", "direft"):
        # The library keeps Rᵀ in a Linear, `[low_rank_dimension, hidden_size]`; take_rotation turns it.
        parameters["rotate_layer"] = take_rotation(rest, "projection", source)
    else:
        parameters["proj_weight"] = rest.pop("projection.weight")
    if rest:
        raise InterventionImportError(f"{source} holds {sorted(rest)[0]!r}, which {formula} has not", param="source")
    return parameters
