"""Folders that `reft export` wrote: pyreft's files, and our manifest with what they have no place for."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from ..errors import InterventionImportError
from ..intervention_set import InterventionSet
from ..manifest import InterventionSpec, Manifest
from .draft import ImportedSet
from .options import ImportOptions
from .pyreft import MANIFEST_FILE, read_pyreft

_ALLOWED = {"name", "description", "license"}


def is_exported(folder: Path) -> bool:
    """Whether our manifest lies beside pyreft's files."""
    return (folder / MANIFEST_FILE).is_file()


def read_exported(folder: Path, options: ImportOptions) -> ImportedSet:
    """The set that was exported, equal to it in manifest and tensors.

    Raises:
        InterventionImportError: options that the manifest answers, or it disagrees with the tensors.
    """
    default = ImportOptions()
    given = [f.name for f in fields(options) if getattr(options, f.name) != getattr(default, f.name)]
    unneeded = sorted(set(given) - _ALLOWED)
    if unneeded:
        raise InterventionImportError(
            f"{MANIFEST_FILE} in the folder records {unneeded[0]} itself; leave the option out, or the file",
            param=unneeded[0],
        )
    manifest = Manifest.parse((folder / MANIFEST_FILE).read_bytes())
    changes = {name: getattr(options, name) for name in given}
    manifest = manifest.model_copy(update=changes)
    edits = read_pyreft(folder, options).edits
    groups: dict[int, dict[str, Tensor]] = {}
    for spec in manifest.interventions:
        matching = [edit for edit in edits if _is_of(spec, edit.layer, edit.component, edit.part)]
        if len(matching) != 1:
            raise InterventionImportError(
                f"{MANIFEST_FILE} names layer {spec.layer} {spec.component}, which the folder does not hold once",
                param="source",
            )
        parameters = dict(matching[0].parameters)
        first = groups.setdefault(spec.parameters, parameters)
        if first.keys() != parameters.keys() or any(not torch.equal(first[name], parameters[name]) for name in first):
            raise InterventionImportError(
                f"{MANIFEST_FILE} ties layer {spec.layer} {spec.component} to another place, but their tensors differ; "
                f"remove {MANIFEST_FILE} to import what pyreft trained since",
                param="source",
            )
    intervention_set = InterventionSet.create(manifest, [groups[index] for index in sorted(groups)])
    return ImportedSet(intervention_set, "pyreft", (f"everything else is from its {MANIFEST_FILE}",))


def _is_of(spec: InterventionSpec, layer: int, component: str, part: str) -> bool:
    return (spec.layer, spec.component, spec.part) == (layer, component, part)
