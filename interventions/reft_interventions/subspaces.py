"""Choices among the rank dimensions of a set, by number or by the names that its manifest gives to groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .errors import InterventionManifestError, InterventionSubspaceError
from .tensor_edit import check_dimensions

if TYPE_CHECKING:
    from .manifest import InterventionSpec, Manifest


def choose_dimensions(manifest: Manifest, chosen: Sequence[int | str]) -> tuple[int, ...]:
    """The rank dimensions that numbers and names stand for, ascending.

    Raises:
        InterventionSubspaceError: an unknown name, a dimension that is out of range or chosen twice, or a set that has
            none to choose from.
    """
    dimensions: list[int] = []
    for one in chosen:
        if isinstance(one, int):
            dimensions.append(one)
        elif one in manifest.subspaces:
            dimensions += manifest.subspaces[one]
        else:
            known = ", ".join(manifest.subspaces) or "none: choose by number"
            raise InterventionSubspaceError(
                f"the set names no subspace {one[:80]!r}; its names are {known}", param="subspaces"
            )
    _check(dimensions, manifest.interventions)
    return tuple(sorted(dimensions))


def check_subspaces(subspaces: Mapping[str, Sequence[int]], interventions: Sequence[InterventionSpec]) -> None:
    """Refuse a manifest whose named groups name dimensions that the set does not have.

    Raises:
        InterventionManifestError: see `choose_dimensions`; or a name without a character.
    """
    for name, dimensions in subspaces.items():
        try:
            if not name:
                raise InterventionSubspaceError("subspaces holds an empty name")
            _check(dimensions, interventions)
        except InterventionSubspaceError as error:
            raise InterventionManifestError(f"the manifest's {error.message}", param="subspaces") from error


def _check(dimensions: Sequence[int], interventions: Sequence[InterventionSpec]) -> None:
    without = next((spec for spec in interventions if not spec.formula_object.has_subspaces), None)
    if without is not None:
        raise InterventionSubspaceError(
            f"subspaces can't be chosen: formula {without.formula!r} of this set has no rank dimensions; leave it out",
            param="subspaces",
        )
    check_dimensions(dimensions, min(spec.low_rank_dimension for spec in interventions))
