"""Whether an intervention set fits the resident base model, and whether its weights are sane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from .components import NO_ROW_SIZES, RowSizes
from .errors import InterventionBaseMismatchError, InterventionShapeError, InterventionValueError
from .intervention_set import InterventionSet
from .manifest import BaseModelRef, InterventionSpec

ORTHONORMAL_TOLERANCE: Mapping[torch.dtype, float] = MappingProxyType(
    # Largest |RᵀR - I|. 16-bit storage rounds each entry by 2⁻⁹ (bfloat16) or 2⁻¹² (float16) of itself.
    {torch.float64: 1e-3, torch.float32: 1e-3, torch.float16: 3e-3, torch.bfloat16: 2e-2}
)
COLLAPSED_NORM = 0.5


@dataclass(frozen=True)
class BaseModelSpec:
    """The resident base model, as validation needs it; without `row_sizes` only rows of hidden_size can be edited."""

    model_id: str
    fingerprint: str
    hidden_size: int
    num_layers: int
    row_sizes: RowSizes = NO_ROW_SIZES

    def to_ref(self) -> BaseModelRef:
        """What the manifest of a set made for this model says of it."""
        return BaseModelRef(
            id=self.model_id, fingerprint=self.fingerprint, hidden_size=self.hidden_size, num_layers=self.num_layers
        )


def validate_for_base(intervention_set: InterventionSet, base: BaseModelSpec) -> None:
    """Refuse a set that does not fit `base`, or whose weights can't be right.

    Raises:
        InterventionShapeError, InterventionBaseMismatchError: see `check_base`.
        InterventionValueError: NaN, infinity, or a `rotate_layer` that is not orthonormal or has collapsed.
    """
    check_base(intervention_set, base)
    check_values(intervention_set)


def check_base(intervention_set: InterventionSet, base: BaseModelSpec) -> None:
    """Refuse a set that does not fit `base`; its values are not looked at.

    Raises:
        InterventionShapeError: hidden size, layer count, row sizes or head counts differ from the base model's.
        UnsupportedComponentError: the base model has no such component.
        InterventionBaseMismatchError: trained for another model of the same shape. A manifest without a fingerprint
            passes when hidden size and layer count agree.
    """
    check_fits(intervention_set, base.hidden_size, base.num_layers, base.row_sizes)
    trained_for = intervention_set.manifest.base_model
    if trained_for.fingerprint and trained_for.fingerprint != base.fingerprint:
        raise InterventionBaseMismatchError(
            f"the set was trained for {trained_for.id!r} with other weights than the resident {base.model_id!r}; "
            "serve it with its own base model or train it again on this one",
            param="base_model",
        )


def check_fits(intervention_set: InterventionSet, hidden_size: int, num_layers: int, row_sizes: RowSizes) -> None:
    """Compare a set's shapes with a model's.

    Raises:
        InterventionShapeError: hidden size, layer count, a row's size differ, or the model has fewer heads.
        UnsupportedComponentError: the model has no such component.
    """
    trained_for = intervention_set.manifest.base_model
    if trained_for.hidden_size != hidden_size:
        raise InterventionShapeError(
            f"the set is for hidden_size {trained_for.hidden_size}, the base model has {hidden_size}",
            param="hidden_size",
        )
    if trained_for.num_layers != num_layers:
        raise InterventionShapeError(
            f"the set is for a model of {trained_for.num_layers} layers, the base model has {num_layers}",
            param="num_layers",
        )
    for spec in intervention_set.manifest.interventions:
        _check_row(spec, hidden_size, row_sizes)


def _check_row(spec: InterventionSpec, hidden_size: int, row_sizes: RowSizes) -> None:
    width = row_sizes.width(spec.component, hidden_size)
    if spec.row_size(hidden_size) != width:
        raise InterventionShapeError(
            f"the set edits rows of {spec.row_size(hidden_size)} numbers at {spec.component}, the base model's have "
            f"{width}; set the intervention's width to {width}",
            param="width",
        )
    if spec.head is not None and spec.head >= row_sizes.num_heads(spec.component):
        raise InterventionShapeError(
            f"head {spec.head} is outside the base model's {row_sizes.num_heads(spec.component)} heads of "
            f"{spec.whole_component}",
            param="head",
        )


def check_values(intervention_set: InterventionSet) -> None:
    """Refuse weights that can't be right, whatever the base model.

    Raises:
        InterventionValueError: NaN, infinity (also after folding to float32), or a bad `rotate_layer`.
    """
    for name, tensor in intervention_set.named_tensors().items():
        if not torch.isfinite(tensor.to(torch.float32)).all():
            raise InterventionValueError(f"{name} holds NaN or infinity; train or export the set again", param=name)
    for index, spec in enumerate(intervention_set.manifest.parameter_groups):
        if spec.formula_object.has_rotation:
            name = f"sites.{index}.rotate_layer"
            _check_rotation(name, intervention_set.parameters[index]["rotate_layer"])


def _check_rotation(name: str, rotation: Tensor) -> None:
    columns = rotation.to(torch.float64)  # [hidden_size, low_rank_dimension]
    smallest = float(columns.norm(dim=0).min())
    if smallest < COLLAPSED_NORM:
        raise InterventionValueError(
            f"{name} has collapsed: a column has norm {smallest:.3g} instead of 1 (weight decay on it does this)",
            param=name,
        )
    gram = columns.T @ columns
    error = float((gram - torch.eye(gram.shape[0], dtype=torch.float64)).abs().max())
    if error > ORTHONORMAL_TOLERANCE[rotation.dtype]:
        raise InterventionValueError(
            f"{name} must have orthonormal columns, but |RᵀR - I| reaches {error:.3g}; store the materialised R, "
            "not the raw tensor of an orthogonal parametrization",
            param=name,
        )
