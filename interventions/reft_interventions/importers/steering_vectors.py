"""Steering vectors: one row per layer in a tensor, or a mapping from layers to rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InterventionImportError
from .base_model import num_layers_of
from .draft import Draft, DraftEdit, require_layers
from .options import ImportOptions
from .tensor_files import read_tensor_file

_LAYER_IN_NAME = re.compile(r"[0-9]+")


def read_steering_vectors(path: Path, options: ImportOptions) -> Draft:
    """Read `.pt` or `.safetensors` steering vectors.

    `[hidden_size]` is for the one layer of `--layers`. In `[n, hidden_size]` row i is for layer i; with
    `--hidden-states` row 0 is the embedding's and row i + 1 for layer i, as transformers counts `hidden_states`. In a
    mapping each name holds one number, its layer.

    Raises:
        InterventionImportError: no such shape, or it is not clear which layer a row is for.
    """
    value = read_tensor_file(path)
    draft = Draft("vectors", [], positions="all")
    if isinstance(value, Mapping) and len(value) == 1 and isinstance(only := next(iter(value.values())), Tensor):
        value = only if only.ndim == 2 or _layer_of(next(iter(value))) is None else value
    if isinstance(value, Tensor) and value.ndim == 1:
        if options.layers is None or len(options.layers) != 1:
            draft.missing.add("--layers", "one number: the file holds one vector, and not whose output it is added to")
            return draft
        vectors = {options.layers[0]: value}
    elif isinstance(value, Tensor) and value.ndim == 2:
        vectors = _from_rows(value, options, draft)
    elif isinstance(value, Mapping):
        vectors = _from_mapping(value)
    else:
        raise InterventionImportError(
            f"{path.name} holds neither rows of numbers nor a mapping from layers to them", param="source"
        )
    draft.edits = addition_edits(vectors, options)
    return draft


def addition_edits(vectors: Mapping[int, Tensor], options: ImportOptions) -> list[DraftEdit]:
    """One addition per layer, scaled; rows of zeros are left out.

    Args:
        vectors: `[hidden_size]` by layer.
        options: `layers` chooses among them, `scale` multiplies, `component` is where (`block_output`).

    Raises:
        InterventionImportError: vectors of different sizes, layers that are not there, or nothing but zeros.
    """
    if options.layers is not None:
        require_layers(options.layers, list(vectors), "the file")
        vectors = {layer: vectors[layer] for layer in options.layers}
    if len({tuple(vector.shape) for vector in vectors.values()}) > 1 or any(v.ndim != 1 for v in vectors.values()):
        raise InterventionImportError("the vectors have different sizes, or are not vectors", param="source")
    scale = 1.0 if options.scale is None else options.scale
    edits = [
        DraftEdit(layer, options.component or "block_output", "addition", {"vector": vector * scale})
        for layer, vector in sorted(vectors.items())
        if bool(vector.any())
    ]
    if not edits:
        raise InterventionImportError("every vector is zero: the set would do nothing", param="source")
    return edits


def _from_rows(rows: Tensor, options: ImportOptions, draft: Draft) -> dict[int, Tensor]:
    num_layers = num_layers_of(options)
    is_clear = options.is_hidden_states or num_layers is None or rows.shape[0] <= num_layers
    if not is_clear and rows.shape[0] == (num_layers or 0) + 1:
        draft.missing.add(
            "--hidden-states", "there is one row more than layers: say so if row 0 belongs to the embedding"
        )
        return {0: rows[0]}
    first = 1 if options.is_hidden_states else 0
    if options.is_hidden_states and bool(rows[0].any()):
        draft.notes.append("row 0, the embedding's, is left out: it is no layer's output")
    return {index - first: rows[index] for index in range(first, rows.shape[0])}


def _from_mapping(value: Mapping[Any, Any]) -> dict[int, Tensor]:
    vectors: dict[int, Tensor] = {}
    for name, row in value.items():
        layer = _layer_of(name)
        if layer is None or not isinstance(row, Tensor) or layer in vectors:
            raise InterventionImportError(
                f"{str(name)[:80]!r} names no single layer, or is no tensor; name the entries 0, 1, 2 …",
                param="source",
            )
        vectors[layer] = row.reshape(-1)
    return vectors


def _layer_of(name: Any) -> int | None:
    if type(name) is int:
        return name
    numbers = _LAYER_IN_NAME.findall(name) if isinstance(name, str) else []
    return int(numbers[0]) if len(numbers) == 1 else None
