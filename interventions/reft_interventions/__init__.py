"""ReFT interventions: formulas, files, and how to run them on a plain transformers model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .errors import InterventionError, ReftError
    from .file_format import FileLimits, dumps, load, loads, read_manifest, save
    from .folded import FoldedEdit, FoldedIntervention, FoldedSet
    from .formulas import FORMULAS, Formula
    from .hooks import Applied, SiteEdit, attach, capture_source, hook_edits
    from .intervention_set import InterventionSet
    from .manifest import BaseModelRef, InterventionSpec, Manifest
    from .model_tree import base_model_spec, decoder_layers, fingerprint, resolve_component
    from .positions import InterventionPositions
    from .validation import BaseModelSpec, validate_for_base
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "hooks": ("Applied", "SiteEdit", "attach", "capture_source", "hook_edits"),
            "errors": ("InterventionError", "ReftError"),
            "file_format": ("FileLimits", "dumps", "load", "loads", "read_manifest", "save"),
            "folded": ("FoldedEdit", "FoldedIntervention", "FoldedSet"),
            "formulas": ("FORMULAS", "Formula"),
            "intervention_set": ("InterventionSet",),
            "manifest": ("BaseModelRef", "InterventionSpec", "Manifest"),
            "model_tree": ("base_model_spec", "decoder_layers", "fingerprint", "resolve_component"),
            "positions": ("InterventionPositions",),
            "validation": ("BaseModelSpec", "validate_for_base"),
        },
    )

__all__ = [
    "FORMULAS",
    "Applied",
    "BaseModelRef",
    "BaseModelSpec",
    "FileLimits",
    "FoldedEdit",
    "FoldedIntervention",
    "FoldedSet",
    "Formula",
    "InterventionError",
    "InterventionPositions",
    "InterventionSet",
    "InterventionSpec",
    "Manifest",
    "ReftError",
    "SiteEdit",
    "attach",
    "base_model_spec",
    "capture_source",
    "decoder_layers",
    "dumps",
    "fingerprint",
    "hook_edits",
    "load",
    "loads",
    "read_manifest",
    "resolve_component",
    "save",
    "validate_for_base",
]
