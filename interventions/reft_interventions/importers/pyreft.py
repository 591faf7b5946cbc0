"""pyreft and pyvene folders: `config.json`, where there is one, and `intkey_<key>.bin` per intervention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InterventionImportError, InterventionManifestError
from ..formulas import FORMULAS
from ..manifest import parse_json
from ..positions import Part
from .draft import Draft, DraftEdit
from .options import ImportOptions
from .pyreft_keys import InterventionKey, parse_key
from .pyreft_states import formula_of_state, formula_of_type, parameters_of
from .tensor_files import read_state_dict

MANIFEST_FILE = "reft_manifest.json"
_NESTED = "intervenable_model"
_PARTITION = 7  # its place in a row of `representations`, which have 12 to 14 entries


@dataclass(frozen=True)
class _Entry:
    """One intervention of the folder; `formula` is None without a `config.json`."""

    key: InterventionKey
    formula: str | None
    state: Mapping[str, Tensor]
    dimension: int | None


def intervention_folder(path: Path) -> Path | None:
    """The folder with the `.bin` files: `path`, or its `intervenable_model`; None when neither is pyreft's."""
    for folder in (path, path / _NESTED):
        if any(folder.glob("intkey_*.bin")) or _is_config(folder / "config.json"):
            return folder
    return None


def read_pyreft(folder: Path, options: ImportOptions) -> Draft:
    """Read a folder that pyreft or pyvene saved.

    Raises:
        InterventionImportError: a file is missing or damaged, a class is unknown, or the names fit no class.
    """
    draft = Draft("pyreft", [], short_prompt="floor")
    entries = _entries(folder)
    counts: dict[tuple[int, str], int] = {}
    for entry in entries:
        site = (entry.key.layer, entry.key.component)
        counts[site] = counts.get(site, 0) + 1
    _check_counts(counts)
    for entry in entries:
        formula = entry.formula or formula_of_state(entry.state, options.formula, draft.missing)
        if formula is None:
            continue
        formula, parameters = parameters_of(formula, entry.state, entry.dimension, entry.key.text)
        has_act = options.act is not None and FORMULAS[formula].has_act
        draft.edits.append(
            DraftEdit(
                layer=entry.key.layer,
                component=entry.key.component,
                formula=formula,
                parameters=parameters,
                act=options.act if has_act and options.act else "linear",
                part=_part(entry.key, counts),
            )
        )
    draft.subspaces = _subspaces(folder, draft)
    draft.notes += _notes(draft.edits, options, has_config=_is_config(folder / "config.json"))
    return draft


def _entries(folder: Path) -> list[_Entry]:
    """In the order of the configuration, or of layers where there is none."""
    config_path = folder / "config.json"
    if not _is_config(config_path):
        keys = [parse_key(path.name.removeprefix("intkey_").removesuffix(".bin")) for path in folder.glob("intkey_*")]
        keys.sort(key=lambda key: (key.ordinal, key.layer, key.component))
        return [_Entry(key, None, _state(folder, key.text), None) for key in keys]
    config = _read_config(config_path)
    entries = []
    for text, type_text, dimension in _rows(config):
        key, formula = parse_key(text), formula_of_type(type_text, text)
        state = {} if formula == "zero" else _state(folder, text)
        entries.append(_Entry(key, formula, state, dimension))
    return entries


def _rows(config: Mapping[str, Any]) -> list[tuple[str, str, int | None]]:
    """Key, type string and interchange dimension of each intervention."""
    keys, types = _strings(config.get("sorted_keys")), _strings(_types(config))
    types = types * len(keys) if len(types) == 1 else types  # one type may stand for all
    if not keys or len(keys) != len(types):
        raise InterventionImportError(
            "config.json does not list one of intervention_types for each of sorted_keys; without the file, the "
            "folder can be imported by its .bin files alone",
            param="source",
        )
    dimensions = config.get("intervention_dimensions") or []
    known = [value if type(value) is int else None for value in dimensions]
    return list(zip(keys, types, known + [None] * (len(keys) - len(known)), strict=False))


def _types(config: Mapping[str, Any]) -> Any:
    """The type strings, under their name today or that of the first releases."""
    return config.get("intervention_types", config.get("intervenable_interventions_type"))


def _subspaces(folder: Path, draft: Draft) -> dict[str, tuple[int, ...]]:
    """pyvene's `subspace_partition`, by the number of each part; only one that all interventions share can be kept."""
    path = folder / "config.json"
    rows = _read_config(path).get("representations") if _is_config(path) else None
    is_known = isinstance(rows, list) and all(isinstance(row, list) and len(row) > _PARTITION for row in rows)
    partitions = [row[_PARTITION] for row in rows] if is_known and isinstance(rows, list) else []
    if not any(partitions):
        return {}
    parts = [_dimensions(part) for part in partitions[0]] if isinstance(partitions[0], list) else []
    is_shared = all(partition == partitions[0] for partition in partitions)
    if not parts or None in parts or not is_shared or not all(FORMULAS[e.formula].has_subspaces for e in draft.edits):
        draft.notes.append("the subspace partition is left out: not one that all interventions share, or of other axes")
        return {}
    return {str(index): part for index, part in enumerate(parts) if part is not None}


def _dimensions(part: Any) -> tuple[int, ...] | None:
    """Two integers are a half-open range, anything else is a list of them; None = neither."""
    if not isinstance(part, list) or not part or not all(type(value) is int for value in part):
        return None
    return tuple(range(*part)) if len(part) == 2 else tuple(part)


def _strings(value: Any) -> list[str]:
    values = [value] if isinstance(value, str) else value
    return values if isinstance(values, list) and all(isinstance(entry, str) for entry in values) else []


def _is_config(path: Path) -> bool:
    """Whether this is a pyvene configuration: a model's own `config.json` may lie in the same place."""
    return path.is_file() and _types(_read_config(path)) is not None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_bytes())
    except InterventionManifestError as error:
        raise InterventionImportError(f"{path.name} can't be read: {error.message}", param="source") from error
    return value if isinstance(value, dict) else {}


def _state(folder: Path, key: str) -> dict[str, Tensor]:
    return read_state_dict(folder / f"intkey_{key}.bin")


def _check_counts(counts: Mapping[tuple[int, str], int]) -> None:
    several = [site for site, count in counts.items() if count > 2]
    if several:
        layer, component = several[0]
        raise InterventionImportError(
            f"layer {layer} {component} has {counts[several[0]]} interventions; at most a prefix's and a suffix's can "
            "be told apart. Import the others as sets of their own",
            param="source",
        )


def _part(key: InterventionKey, counts: Mapping[tuple[int, str], int]) -> Part:
    if counts[key.layer, key.component] == 1:
        return "both"
    return "prefix" if key.ordinal == 0 else "suffix"


def _notes(edits: Sequence[DraftEdit], options: ImportOptions, *, has_config: bool) -> list[str]:
    notes = ["short prompts follow pyreft's rule, floor(L/2) at each end" if options.short_prompt is None else ""]
    if options.act is None and any(FORMULAS[edit.formula].has_act for edit in edits):
        notes.append("the activation is not recorded: linear, pyreft's default, is assumed (--act)")
    if not has_config:
        notes.append("no config.json: formulas follow from the names of the tensors")
    return [note for note in notes if note]
