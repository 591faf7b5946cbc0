"""An intervention set: a manifest and its tensors, checked against each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from .columns_edit import ColumnsEdit
from .errors import InterventionManifestError, InterventionShapeError
from .folded import FoldedEdit, FoldedIntervention, FoldedSet
from .manifest import InterventionSpec, Manifest
from .tensor_edit import TensorEdit

DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
)


@dataclass(frozen=True, eq=False)
class InterventionSet:
    """A manifest with its tensors; build it with `create`, which checks them.

    `parameters[i]` holds the tensors `sites.<i>.*`, on the CPU. `content_hash` is `sha256:<hex>` of the canonical
    manifest and the tensors.
    """

    manifest: Manifest
    parameters: tuple[Mapping[str, Tensor], ...]
    content_hash: str

    @classmethod
    def create(cls, manifest: Manifest, parameters: Sequence[Mapping[str, Tensor]]) -> InterventionSet:
        """Check names, shapes and dtypes, copy the tensors, and hash the whole.

        Args:
            manifest: what the tensors mean.
            parameters: one mapping per parameter group, in the order of the manifest's indices; any device.

        Raises:
            InterventionManifestError: a group or a tensor is missing or left over; an interchange without a stored
                source at generated tokens.
            InterventionShapeError: a tensor has the wrong shape or a dtype other than F64, F32, F16, BF16.
        """
        groups = manifest.parameter_groups
        if len(parameters) != len(groups):
            raise InterventionManifestError(
                f"the manifest uses {len(groups)} groups of tensors, there are {len(parameters)}", param="parameters"
            )
        hidden_size = manifest.base_model.hidden_size
        copies: list[Mapping[str, Tensor]] = []
        for index, (spec, tensors) in enumerate(zip(groups, parameters, strict=True)):
            check_names(spec, index, tensors)
            for name, tensor in tensors.items():
                check_shape(spec, index, name, tuple(tensor.shape), hidden_size)
                if tensor.dtype not in DTYPE_NAMES:
                    raise InterventionShapeError(
                        f"sites.{index}.{name} has dtype {tensor.dtype}; store F64, F32, F16 or BF16", param=name
                    )
            # Copies: a trainer goes on changing its own tensors, and the hash must stay true.
            copied = {name: tensors[name].detach().to("cpu", copy=True).contiguous() for name in sorted(tensors)}
            copies.append(MappingProxyType(copied))
        for spec in manifest.interventions:
            _check_source(spec, copies[spec.parameters])
        return cls(manifest, tuple(copies), _content_hash(manifest, named_tensors(copies)))

    @property
    def num_parameters(self) -> int:
        """How many numbers the set holds; tied tensors count once."""
        return sum(tensor.numel() for group in self.parameters for tensor in group.values())

    def named_tensors(self) -> dict[str, Tensor]:
        """The tensors by their name in the file, `sites.<i>.<parameter>`."""
        return dict(named_tensors(self.parameters))

    def fold(self) -> FoldedSet:
        """Fold every intervention in float32; the result's hash covers folded weights, sites and positions."""
        edits: dict[tuple[int, str, int | None], FoldedEdit] = {}
        hasher = hashlib.sha256(b"reft-folded-1")
        folded: list[FoldedIntervention] = []
        for spec in self.manifest.interventions:
            key = (spec.parameters, spec.act, spec.head)
            if key not in edits:  # tied interventions share one copy of the weights
                edits[key] = self._fold_one(spec)
            edit, positions, component = edits[key], spec.intervention_positions, spec.whole_component
            folded.append(FoldedIntervention(spec.layer, component, positions, edit))
            hasher.update(f"|{spec.layer}|{component}|{positions!r}|".encode())
            hasher.update(edit_digest(edit))
        return FoldedSet(f"sha256:{hasher.hexdigest()}", tuple(folded))

    def _fold_one(self, spec: InterventionSpec) -> FoldedEdit:
        edit = spec.formula_object.fold(self.parameters[spec.parameters], spec.act)
        columns = spec.columns
        if columns is None:
            return edit
        if not isinstance(edit, TensorEdit):
            raise TypeError(f"{type(edit).__name__} can't edit one head")
        return ColumnsEdit(edit, columns.start, columns.stop)


def edit_digest(edit: FoldedEdit) -> bytes:
    """SHA-256 of one of our folded edits.

    Raises:
        TypeError: an edit of a type that this package does not define.
    """
    if isinstance(edit, TensorEdit):
        return edit.digest()
    raise TypeError(f"{type(edit).__name__} has no digest")


def check_names(spec: InterventionSpec, index: int, names: Iterable[str]) -> None:
    """Compare a group's tensor names with what its formula needs.

    Raises:
        InterventionManifestError: a tensor is missing or left over.
    """
    formula, present = spec.formula_object, set(names)
    allowed = set(formula.parameter_shapes(1, 1))
    missing = sorted(allowed - formula.optional_parameters - present)
    if missing:
        raise InterventionManifestError(
            f"formula {spec.formula!r} needs the tensor sites.{index}.{missing[0]}, which is missing", param=missing[0]
        )
    extra = sorted(present - allowed)
    if extra:
        raise InterventionManifestError(
            f"formula {spec.formula!r} has no tensor sites.{index}.{extra[0]}; remove it", param=extra[0]
        )


def _check_source(spec: InterventionSpec, names: Iterable[str]) -> None:
    """A source prompt has no generated tokens whose rows could be given to the base prompt's."""
    if spec.formula_object.needs_source(names) and not spec.intervention_positions.is_prompt_only:
        raise InterventionManifestError(
            f"formula {spec.formula!r} at positions {spec.positions!r} needs a stored source; without one it can edit "
            "tokens of the prompt only",
            param="positions",
        )


def check_shape(spec: InterventionSpec, index: int, name: str, shape: tuple[int, ...], hidden_size: int) -> None:
    """Compare one tensor's shape with its formula's.

    Raises:
        InterventionShapeError: they differ.
    """
    expected = spec.formula_object.parameter_shapes(spec.row_size(hidden_size), spec.low_rank_dimension)[name]
    if shape != expected:
        size = f"hidden_size {hidden_size}" if spec.width is None else f"width {spec.width}"
        raise InterventionShapeError(
            f"sites.{index}.{name} has shape {list(shape)}; with {size} and low_rank_dimension "
            f"{spec.low_rank_dimension} it must be {list(expected)}",
            param=name,
        )


def named_tensors(parameters: Iterable[Mapping[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Each tensor with its name in the file, `sites.<i>.<parameter>`."""
    for index, group in enumerate(parameters):
        for name, tensor in group.items():
            yield f"sites.{index}.{name}", tensor


def _content_hash(manifest: Manifest, tensors: Iterable[tuple[str, Tensor]]) -> str:
    hasher = hashlib.sha256(manifest.canonical_json().encode())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        hasher.update(f"\n{name}|{DTYPE_NAMES[tensor.dtype]}|{list(tensor.shape)}|".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"sha256:{hasher.hexdigest()}"
