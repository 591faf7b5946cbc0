"""A set as a folder that pyreft 0.1.0 and pyvene 0.1.8 load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import InterventionExportError
from ..importers.pyreft import MANIFEST_FILE
from ..importers.pyreft_keys import make_key
from ..importers.rotation import parametrized_names
from ..intervention_set import InterventionSet
from ..manifest import InterventionSpec

_State = dict[str, Tensor]
_NUM_REPRESENTATION_FIELDS = 14
_PYREFT = "pyreft.interventions"
_PYVENE = "pyvene.models.interventions"


def export_pyreft(intervention_set: InterventionSet, folder: str | os.PathLike[str]) -> tuple[str, ...]:
    """Write `config.json`, one `intkey_<key>.bin` per intervention, and our manifest beside them.

    pyreft records neither positions, prompt template nor base model: they are in the manifest, which pyreft does not
    read and `reft import` does, so that importing the folder gives the same set again.

    Returns:
        Sentences about what the folder's user has to know.

    Raises:
        InterventionExportError: pyreft can't express an edit, or the folder is not empty.
        OSError: it can't be written.
    """
    for spec in intervention_set.manifest.interventions:
        _check(spec, intervention_set.parameters[spec.parameters])
    specs = _in_pyreft_order(intervention_set.manifest.interventions)
    states = {key: _WRITERS[spec.formula](intervention_set.parameters[spec.parameters]) for key, spec in specs.items()}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if any(target.iterdir()):
        raise InterventionExportError(f"{target} is not empty; name a new folder", param="folder")
    for key, state in states.items():
        torch.save(state, target / f"intkey_{key}.bin")
    manifest = intervention_set.manifest
    (target / MANIFEST_FILE).write_text(manifest.canonical_json() + "\n", encoding="utf-8")
    config = _config(specs, manifest.base_model.hidden_size)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return _notes(intervention_set)


def _in_pyreft_order(interventions: tuple[InterventionSpec, ...]) -> dict[str, InterventionSpec]:
    """By key, prefixes first: pyreft hands prefix positions to the first half of a list and suffixes to the second.

    Raises:
        InterventionExportError: several edits at one place that pyreft has no words for.
    """
    ordered: dict[str, InterventionSpec] = {}
    for spec in sorted(interventions, key=lambda spec: spec.part == "suffix"):
        key = make_key(spec.layer, spec.component, 0 if spec.part != "suffix" else 1)
        if key in ordered:
            raise InterventionExportError(
                f"layer {spec.layer} {spec.component} has two edits that are not the prefix and the suffix of one rule",
                param="interventions",
            )
        ordered[key] = spec
    for key, spec in ordered.items():
        if spec.part != "both" and len({s.part for s in ordered.values() if _is_same_site(s, spec)}) != 2:
            raise InterventionExportError(
                f"{key} edits one end alone, which pyreft can't tell from both; use positions fN or lN",
                param="interventions",
            )
    return ordered


def _is_same_site(one: InterventionSpec, other: InterventionSpec) -> bool:
    return (one.layer, one.component) == (other.layer, other.component)


def _check(spec: InterventionSpec, parameters: Mapping[str, Tensor]) -> None:
    if spec.formula not in _WRITERS:
        _refuse(spec, f"pyreft has no class for {spec.formula}")
    if spec.formula == "scale_shift" and bool(parameters["scale"].any()):
        _refuse(spec, "pyvene has no class that scales a row; only a scale of 0, a replacement, can be exported")
    if spec.formula == "dii" and "source" in parameters:
        _refuse(spec, "pyvene's files hold no source for a rotated space; store its projection as consreft instead")
    if spec.act != "linear":
        _refuse(spec, f"pyreft's files don't record the activation {spec.act!r}: loaded again it would be linear")
    if spec.component.startswith("head_"):
        _refuse(spec, "pyreft's files don't record which head is edited")
    if spec.positions == "generated":
        _refuse(spec, "pyreft can't edit generated tokens without the prompt's")


def _refuse(spec: InterventionSpec, why: str) -> None:
    raise InterventionExportError(f"layer {spec.layer} {spec.component}: {why}", param="interventions")


def _loreft(parameters: Mapping[str, Tensor]) -> _State:
    return {
        "weight": parameters["learned_source_weight"],
        "bias": parameters["learned_source_bias"],
        "rotate_layer": parameters["rotate_layer"],
    }


def _projected(parameters: Mapping[str, Tensor]) -> _State:
    state = {"proj_layer.weight": parameters["proj_weight"], **_linear(parameters)}
    if "proj_bias" in parameters:
        state["proj_layer.bias"] = parameters["proj_bias"]
    return state | _dimensions(parameters["proj_weight"].shape[1])


def _constant_source(parameters: Mapping[str, Tensor]) -> _State:
    rotation = parameters["rotate_layer"]
    return {
        "learned_source": parameters["learned_source"],
        **_parametrized(rotation),
        **_dimensions(rotation.shape[0]),
    }


def _direft(parameters: Mapping[str, Tensor]) -> _State:
    rotation = parameters["rotate_layer"]
    return {**_linear(parameters), **_parametrized(rotation), **_dimensions(rotation.shape[0])}


def _dii(parameters: Mapping[str, Tensor]) -> _State:
    rotation = parameters["rotate_layer"]
    return {**_parametrized(rotation), **_dimensions(rotation.shape[0])}


def _constant(parameters: Mapping[str, Tensor]) -> _State:
    vector = parameters["vector"] if "vector" in parameters else parameters["shift"]
    return {"source_representation": vector, **_dimensions(vector.shape[0])}


_WRITERS: Mapping[str, Callable[[Mapping[str, Tensor]], _State]] = MappingProxyType(
    {
        "loreft": _loreft,
        "noreft": _projected,
        "consreft": _constant_source,
        "lobireft": _constant_source,
        "direft": _direft,
        "nodireft": _projected,
        "dii": _dii,
        "addition": _constant,
        "scale_shift": _constant,
    }
)
_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "loreft": f"{_PYREFT}.LoreftIntervention",
        "noreft": f"{_PYREFT}.NoreftIntervention",
        "consreft": f"{_PYREFT}.ConsreftIntervention",
        "lobireft": f"{_PYREFT}.LobireftIntervention",
        "direft": f"{_PYREFT}.DireftIntervention",
        "nodireft": f"{_PYREFT}.NodireftIntervention",
        "dii": f"{_PYVENE}.LowRankRotatedSpaceIntervention",
        "addition": f"{_PYVENE}.AdditionIntervention",
        "scale_shift": f"{_PYVENE}.VanillaIntervention",
    }
)


def _linear(parameters: Mapping[str, Tensor]) -> _State:
    return {
        "learned_source.weight": parameters["learned_source_weight"],
        "learned_source.bias": parameters["learned_source_bias"],
    }


def _dimensions(width: int) -> _State:
    return {"embed_dim": torch.tensor(width), "interchange_dim": torch.tensor(width)}


def _parametrized(rotation: Tensor) -> _State:
    """The parametrization that yields R exactly: base = [R, an orthonormal rest], turned by nothing.

    With the raw tensor at minus the identity the Householder product is minus the identity's columns, and its signs
    turn them back; `importers.rotation.rebuild_rotation` has the formula.
    """
    height, width = rotation.shape
    original_name, base_name = parametrized_names("rotate_layer")
    complete, _ = torch.linalg.qr(rotation.to(torch.float64), mode="complete")
    base = torch.cat([rotation, complete[:, width:].to(rotation.dtype)], dim=1)
    return {original_name: -torch.eye(height, width, dtype=rotation.dtype), base_name: base.contiguous()}


def _config(specs: Mapping[str, InterventionSpec], hidden_size: int) -> dict[str, Any]:
    """pyvene 0.1.8's `config.json`."""
    rows = [
        [spec.layer, spec.component, "pos", 1, spec.low_rank_dimension or None]
        + [None] * (_NUM_REPRESENTATION_FIELDS - 5)
        for spec in specs.values()
    ]
    return {
        "intervention_constant_sources": [spec.formula != "dii" for spec in specs.values()],
        "intervention_dimensions": [spec.row_size(hidden_size) for spec in specs.values()],
        "intervention_types": [f"<class '{_TYPES[spec.formula]}'>" for spec in specs.values()],
        "mode": "parallel",
        "representations": rows,
        "sorted_keys": list(specs),
    }


def _notes(intervention_set: InterventionSet) -> tuple[str, ...]:
    manifest = intervention_set.manifest
    notes = [f"pyreft does not read {MANIFEST_FILE}: give it the base model and the positions yourself"]
    if manifest.num_parameter_groups < len(manifest.interventions):
        notes.append("tied edits are written as copies; pyreft will train them apart")
    if any(spec.formula in ("noreft", "nodireft") for spec in manifest.interventions):
        notes.append("pyreft 0.1.0 can't load its own NoReFT and NodiReFT without add_bias; docs/importing.md says how")
    return tuple(notes)
