"""From what a reader found to a checked intervention set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..activations import Activation
from ..components import ROW_KINDS, is_head
from ..errors import InterventionImportError
from ..formulas import FORMULAS
from ..intervention_set import InterventionSet
from ..manifest import InterventionSpec, Manifest
from ..positions import Part, ShortPromptRule
from ..validation import check_values
from .base_model import resolve_base
from .options import ImportOptions, Missing
from .rotation import is_orthonormal, without_rotation


@dataclass(frozen=True)
class DraftEdit:
    """One edit of the checkpoint, in our formula's parameters; `positions` None = the draft's."""

    layer: int
    component: str
    formula: str
    parameters: Mapping[str, Tensor]
    act: Activation = "linear"
    part: Part = "both"
    positions: str | tuple[int, ...] | None = None


@dataclass
class Draft:
    """What a reader found.

    `positions` None = the checkpoint does not record them. `notes` are sentences for the user: what was assumed, or
    left out.
    """

    format: str
    edits: list[DraftEdit]
    positions: str | tuple[int, ...] | None = None
    short_prompt: ShortPromptRule = "paper"
    description: str = ""
    subspaces: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    missing: Missing = field(default_factory=Missing)


@dataclass(frozen=True)
class ImportedSet:
    """The set, the format it came from, and what the user should know about it."""

    intervention_set: InterventionSet
    format: str
    notes: tuple[str, ...]


def assemble(draft: Draft, options: ImportOptions) -> ImportedSet:
    """Complete a draft with the options and check it as an upload would be.

    Raises:
        InterventionImportError: something has to be asked for; the message lists all of it.
        InterventionError: the values or shapes can't be right, see `InterventionSet.create` and `check_values`.
    """
    missing = draft.missing
    positions = options.positions or draft.positions
    if positions is None and (not draft.edits or any(edit.positions is None for edit in draft.edits)):
        ends = " as fN+lM: prefix and suffix have weights of their own" if _is_untied(draft) else ""
        missing.add("--positions", f"which tokens are edited{ends}, for instance f7+l7 or l1")
    edits = [_with_sound_rotation(edit, draft, options) for edit in draft.edits]
    base = resolve_base(options, _hidden_size(edits), missing)
    if options.head is None and any(is_head(edit.component) for edit in edits):
        missing.add("--head", "which head, counted from 0")
    missing.raise_if_any()
    if base is None or not edits:
        raise InterventionImportError("the checkpoint holds no intervention", param="source")
    short_prompt = options.short_prompt or draft.short_prompt
    groups: list[Mapping[str, Tensor]] = []
    specs = [
        InterventionSpec(
            layer=edit.layer,
            component=edit.component,
            head=options.head if is_head(edit.component) else None,
            width=None if _is_whole_row(edit) else row_width(edit.parameters),
            formula=edit.formula,
            low_rank_dimension=rank_of(edit.formula, edit.parameters),
            act=edit.act,
            positions=edit.positions if edit.positions is not None else positions or "",
            part=edit.part,
            suffix_offset=options.suffix_offset,
            short_prompt=short_prompt,
            parameters=_group_of(edit.parameters, groups),
        )
        for edit in edits
    ]
    manifest = Manifest(
        name=options.name,
        description=options.description or draft.description,
        license=options.license,
        base_model=base,
        interventions=tuple(specs),
        subspaces=draft.subspaces,
        prompt_template=options.prompt_template,
        training={"imported_from": draft.format},
    )
    intervention_set = InterventionSet.create(manifest, groups)
    check_values(intervention_set)
    return ImportedSet(intervention_set, draft.format, tuple(draft.notes))


def rank_of(formula: str, parameters: Mapping[str, Tensor]) -> int:
    """The low_rank_dimension that the tensors have; 0 for a formula without one."""
    if not FORMULAS[formula].has_low_rank:
        return 0
    if "rotate_layer" in parameters:
        return int(parameters["rotate_layer"].shape[-1])
    return int(parameters["learned_source_weight"].shape[0])


def row_width(parameters: Mapping[str, Tensor]) -> int:
    """The size of the edited row, by the tensors of any formula that a reader makes."""
    if "rotate_layer" in parameters:
        return int(parameters["rotate_layer"].shape[0])
    name = next(name for name in ("learned_source_weight", "vector", "scale") if name in parameters)
    return int(parameters[name].shape[-1])


def _is_whole_row(edit: DraftEdit) -> bool:
    """Whether the row has hidden_size numbers; a component that is unknown is refused later, with its name."""
    return ROW_KINDS.get(edit.component) in (None, "hidden") and not is_head(edit.component)


def _hidden_size(edits: Sequence[DraftEdit]) -> int | None:
    """The hidden size that the tensors imply; None where no edit is at a row of that size."""
    return next((row_width(edit.parameters) for edit in edits if _is_whole_row(edit)), None)


def _is_untied(draft: Draft) -> bool:
    return any(edit.part != "both" for edit in draft.edits)


def _group_of(parameters: Mapping[str, Tensor], groups: list[Mapping[str, Tensor]]) -> int:
    """The index of the group with these tensors; equal ones are stored once, as tied."""
    for index, group in enumerate(groups):
        if group.keys() == parameters.keys() and all(_is_same(group[name], parameters[name]) for name in group):
            return index
    groups.append(parameters)
    return len(groups) - 1


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _with_sound_rotation(edit: DraftEdit, draft: Draft, options: ImportOptions) -> DraftEdit:
    """The edit, or the same function by another formula where R is not orthonormal and the user allows that."""
    if not FORMULAS[edit.formula].has_rotation:
        return edit
    source = f"layer {edit.layer} {edit.component}"
    if is_orthonormal(edit.parameters["rotate_layer"], source):
        return edit
    if not options.allow_non_orthonormal:
        raise InterventionImportError(
            f"R of {source} is not orthonormal, as after resuming a training from a checkpoint; "
            "--allow-non-orthonormal keeps its function exactly, as a formula that does not ask for it",
            param="allow_non_orthonormal",
        )
    formula, parameters = without_rotation(edit.formula, edit.parameters)
    draft.notes.append(f"{source}: R is not orthonormal, so its {edit.formula} is stored as {formula}, the same edit")
    return replace(edit, formula=formula, parameters=parameters)


def require_layers(layers: Sequence[int], available: Sequence[int], source: str) -> None:
    """Refuse layers that the checkpoint does not have.

    Raises:
        InterventionImportError: naming those that it has.
    """
    unknown = sorted(set(layers) - set(available))
    if unknown:
        raise InterventionImportError(
            f"{source} has no layer {unknown[0]}; it has {', '.join(map(str, sorted(available)))}", param="layers"
        )
