"""Stacked dictionaries of directions (AxBench's ReFT-r1, DiffMean, probes): one row per concept, one layer."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

from ..errors import InterventionImportError
from .draft import Draft, DraftEdit
from .options import ImportOptions
from .tensor_files import read_tensor_file

_METADATA = "metadata.jsonl"


def dictionary_file(folder: Path) -> Path | None:
    """The one `*weight.pt` of a folder; None where there is none, or several."""
    found = sorted(folder.glob("*weight.pt"))
    return found[0] if len(found) == 1 else None


def read_dictionary(path: Path, options: ImportOptions) -> Draft:
    """Read one concept's direction, to be added as AxBench steers: `h + factor * max_activation * weight[concept]`.

    The bias, where there is one, belongs to the detector (`relu(h·w + b)`), which steering does not use.

    Raises:
        InterventionImportError: not `[num_concepts, hidden_size]`, or no such concept.

    Source: Wu et al. 2025 (AxBench), arXiv:2501.17148; its `AdditionIntervention`.
    """
    weights = dictionary_file(path) if path.is_dir() else path
    if weights is None:
        raise InterventionImportError("the folder must hold exactly one *weight.pt", param="source")
    rows = read_tensor_file(weights)
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        raise InterventionImportError(f"{weights.name} is not [num_concepts, hidden_size]", param="source")
    draft = Draft("dictionary", [], positions="all")
    if options.concept is None:
        draft.missing.add("--concept", f"which row, 0 to {rows.shape[0] - 1}")
    elif not 0 <= options.concept < rows.shape[0]:
        raise InterventionImportError(f"there are {rows.shape[0]} concepts, counted from 0", param="concept")
    if options.layers is None:
        draft.missing.add("--layers", "the layer whose output the dictionary was trained on")
    if options.scale is None:
        draft.missing.add("--scale", "the steering factor; the row itself has norm 1, AxBench tries 0.2 to 5")
    if options.max_activation is None:
        draft.notes.append("--max-activation is taken as 1; AxBench multiplies by the concept's largest activation")
    vector = rows[options.concept or 0] * (options.scale or 0.0) * (options.max_activation or 1.0)
    draft.edits = [
        DraftEdit(layer, options.component or "block_output", "addition", {"vector": vector.clone()})
        for layer in options.layers or (0,)
    ]
    draft.description = _concept(weights.with_name(_METADATA), options.concept)
    draft.notes.append("the detector (bias, ReLU, top-k) is not carried over: every row gets the same vector")
    return draft


def _concept(path: Path, index: int | None) -> str:
    """The concept's text, from the line `index` of the metadata, where there is one."""
    if index is None or not path.is_file():
        return ""
    try:
        with path.open(encoding="utf-8") as lines:
            line = next((text for number, text in enumerate(lines) if number == index), "{}")
        concept = json.loads(line).get("concept", "")
    except (ValueError, AttributeError):
        return ""
    return f"Concept: {concept}"[:4000] if isinstance(concept, str) and concept else ""
