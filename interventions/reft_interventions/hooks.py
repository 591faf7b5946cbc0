"""Interventions on a plain transformers model through hooks: the slow reference, and what the trainer uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InterventionShapeError, InterventionSourceError
from .folded import FoldedIntervention, FoldedSet
from .intervention_set import InterventionSet
from .manifest import InterventionSpec
from .model_tree import Columns, ComponentHook, decoder, decoder_layers, resolve_component, row_sizes, site_width
from .positions import InterventionPositions
from .token_positions import PositionTracker
from .validation import check_fits

RowFunction = Callable[[Tensor], Tensor]
AnySet = InterventionSet | FoldedSet


@dataclass(frozen=True)
class SiteEdit:
    """A function of the edited rows at one site.

    `function` maps `[num_rows, width]` rows, in the residual's dtype, to their new values; it may hold live parameters,
    gradients flow through. `component` is a whole one; `columns` are what is edited of it, None = all.
    """

    layer: int
    component: str
    positions: InterventionPositions
    function: RowFunction
    columns: slice | None = None

    @classmethod
    def of(cls, spec: InterventionSpec, function: RowFunction) -> SiteEdit:
        """`function` at the site of a manifest's intervention."""
        return cls(spec.layer, spec.whole_component, spec.intervention_positions, function, spec.columns)


@dataclass(frozen=True, eq=False)
class Applied:
    """A set and how it is applied.

    Args:
        scale: multiplies the delta.
        subspaces: only these rank dimensions act; None = all.
        source_rows: for each intervention that needs a source, `[num_positions, hidden_size]` rows of the source
            prompt, as `capture_source` gives them; then one prompt at a time, in one forward pass.
    """

    set: AnySet
    scale: float = 1.0
    subspaces: tuple[int, ...] | None = None
    source_rows: tuple[Tensor, ...] = ()


@contextmanager
def attach(
    model: nn.Module,
    sets: AnySet | Sequence[AnySet | tuple[AnySet, float] | Applied],
    *,
    prompt_lengths: Sequence[int] | None = None,
) -> Iterator[None]:
    """Apply intervention sets to every forward pass and `generate` call of `model` inside the `with` block.

    Every row of a batch is edited at the positions of its own prompt. Sets apply in the order given. This is the
    reference that the engine is tested against, so an `InterventionSet` is run by its formulas, unfolded.

    Args:
        model: a transformers decoder; nothing of it is changed but hooks, which go when the block ends.
        sets: one set, or a sequence of sets, `(set, scale)` pairs or `Applied`; the scale multiplies the delta.
        prompt_lengths: tokens of each row's prompt, padding not counted; None = the tokens of the last forward pass
            that began without a cache (`generate`'s first).

    Raises:
        InterventionShapeError: a set does not fit the model.
        InterventionSubspaceError, InterventionSourceError: rank dimensions or sources that a set does not have.
        UnsupportedComponentError: the model has no such part.
    """
    entries = [sets] if isinstance(sets, InterventionSet | FoldedSet) else sets
    edits = [edit for entry in entries for edit in site_edits(model, _applied(entry))]
    with hook_edits(model, edits, prompt_lengths):
        yield


@contextmanager
def hook_edits(
    model: nn.Module, edits: Sequence[SiteEdit], prompt_lengths: Sequence[int] | None = None
) -> Iterator[None]:
    """Apply `edits`, in order, to every forward pass of `model` inside the `with` block.

    Only the edited rows are gathered and put back; all others stay the same bit for bit. Padding, left or right, is
    never edited: it is what the attention mask hides.

    Args:
        model: a transformers decoder.
        edits: in order; those at one site compose.
        prompt_lengths: as in `attach`; needed for teacher forcing and for prompts prefilled in chunks.

    Raises:
        UnsupportedComponentError: the model has no such part.
    """
    by_site: dict[tuple[int, str], list[SiteEdit]] = {}
    for edit in edits:
        by_site.setdefault((edit.layer, edit.component), []).append(edit)
    inner = decoder(model)
    tracker = PositionTracker(inner, prompt_lengths)
    with ExitStack() as stack:
        for (layer, component), site in by_site.items():
            hook = resolve_component(model, layer, component)
            stack.callback(_register(hook, site, tracker))
        if by_site:
            handle = inner.register_forward_pre_hook(tracker.observe, with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield


def capture_source(model: nn.Module, one: AnySet, token_ids: Sequence[int]) -> tuple[Tensor, ...]:
    """Run a source prompt through the plain model, and note its rows where a set needs them.

    Returns:
        For each intervention that needs a source, `[num_positions, hidden_size]`, in ascending order of position.
    """
    sites = [(i.layer, i.component, i.positions) for i in _open_sites(one)]
    noted: list[list[Tensor]] = [[] for _ in sites]

    def note(into: list[Tensor]) -> RowFunction:
        def function(rows: Tensor) -> Tensor:
            into.append(rows)
            return rows

        return function

    edits = [SiteEdit(*site, note(into)) for site, into in zip(sites, noted, strict=True)]
    with torch.no_grad(), hook_edits(model, edits):
        decoder(model)(torch.tensor([list(token_ids)], device=next(model.parameters()).device), use_cache=False)
    return tuple(rows[0] if rows else torch.empty(0, 0) for rows in noted)


def site_edits(model: nn.Module, applied: Applied) -> list[SiteEdit]:
    """The edits of one set with its weights on the model's device.

    Raises:
        InterventionShapeError: the set does not fit the model.
        InterventionSubspaceError, InterventionSourceError: rank dimensions or sources that it does not have.
    """
    device, one = next(model.parameters()).device, applied.set
    if len(applied.source_rows) != len(_open_sites(one)):
        raise InterventionSourceError(
            f"{len(_open_sites(one))} interventions of the set need source rows, {len(applied.source_rows)} are given"
        )
    source_rows = iter(applied.source_rows)
    if isinstance(one, FoldedSet):
        moved = one.scaled(applied.scale).restricted(applied.subspaces).to(device)
        return [
            SiteEdit(i.layer, i.component, i.positions, _folded_function(i, source_rows)) for i in moved.interventions
        ]
    check_fits(one, site_width(model, "block_output"), len(decoder_layers(model)), row_sizes(model))
    groups = [{name: tensor.to(device) for name, tensor in group.items()} for group in one.parameters]
    return [
        SiteEdit.of(spec, _formula_function(spec, groups[spec.parameters], applied, source_rows))
        for spec in one.manifest.interventions
    ]


def _applied(entry: AnySet | tuple[AnySet, float] | Applied) -> Applied:
    if isinstance(entry, Applied):
        return entry
    return Applied(*entry) if isinstance(entry, tuple) else Applied(entry)


def _open_sites(one: AnySet) -> Sequence[FoldedIntervention]:
    """The interventions of a set that need source rows."""
    return (one if isinstance(one, FoldedSet) else one.fold()).open_interventions


def _folded_function(intervention: FoldedIntervention, source_rows: Iterator[Tensor]) -> RowFunction:
    source = next(source_rows) if intervention.edit.needs_source else None
    folded = intervention.edit if source is None else intervention.edit.with_source(source)

    def edit(rows: Tensor) -> Tensor:
        if source is not None:
            _check_num_rows(source.shape[0], rows)
        return rows + folded.delta(rows.to(torch.float32)).to(rows.dtype)

    return edit


def _formula_function(
    spec: InterventionSpec, parameters: Mapping[str, Tensor], applied: Applied, source_rows: Iterator[Tensor]
) -> RowFunction:
    formula, scale = spec.formula_object, applied.scale
    if applied.subspaces is not None:
        parameters = formula.restricted(parameters, applied.subspaces)
    source = next(source_rows) if formula.needs_source(parameters) else None
    if source is not None and spec.columns is not None:
        source = source[:, spec.columns]

    def edit(rows: Tensor) -> Tensor:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        cast = {name: value.to(dtype) for name, value in parameters.items()}
        if source is not None:
            _check_num_rows(source.shape[0], rows)
            cast["source"] = source.to(rows.device, dtype)
        delta = formula.delta(rows.to(dtype), cast, spec.act)
        return rows + (delta if scale == 1.0 else delta * scale).to(rows.dtype)

    return edit


def _check_num_rows(num_source_rows: int, rows: Tensor) -> None:
    if rows.shape[0] != num_source_rows:
        raise InterventionSourceError(
            f"{num_source_rows} source rows are given, and {rows.shape[0]} tokens are edited in this forward pass; run "
            "one prompt at a time, whole, with a source that has as many edited tokens",
            param="source",
        )


def _register(hook: ComponentHook, site: Sequence[SiteEdit], tracker: PositionTracker) -> Callable[[], None]:
    def change(hidden: Tensor) -> Tensor:
        if hook.columns is not None:
            return _put_columns(hidden, hook.columns, change_rows(hidden[..., hook.columns]))
        return change_rows(hidden)

    def change_rows(hidden: Tensor) -> Tensor:
        for edit in site:
            index = tracker.index(edit.positions, hidden)
            if index is not None:
                rows = hidden[index]  # [num_rows, width]
                if edit.columns is None:
                    rows = edit.function(rows)
                else:
                    rows = _put_columns(rows, edit.columns, edit.function(rows[..., edit.columns]))
                # Out of place: the original may be a residual that others read, or need its gradient.
                hidden = hidden.index_put(index, rows)
        return hidden

    def change_input(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        if "hidden_states" not in kwargs:
            raise InterventionShapeError("a component was called without hidden states")
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    def change_output(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    if hook.is_input:
        return hook.module.register_forward_pre_hook(change_input, with_kwargs=True).remove
    return hook.module.register_forward_hook(change_output).remove


def _put_columns(rows: Tensor, columns: Columns, values: Tensor) -> Tensor:
    """A copy of `rows` with other values in some columns."""
    changed = rows.clone()
    changed[..., columns] = values
    return changed
