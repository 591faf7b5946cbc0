"""Stored interventions in their wire shape."""

from __future__ import annotations

import math

from reft_client.types import InterventionInfo, Provenance, SelfTestReport, SelfTestSite
from reft_interventions.formulas import FORMULAS
from reft_interventions.manifest import InterventionSpec, Manifest
from reft_interventions.store import StoredVersion
from reft_server.engine import types as engine
from reft_server.registry import Registry
from reft_server.tenants.model import wire_name


def intervention_info(
    registry: Registry, stored: StoredVersion, tenant: str, provenance: Provenance | None = None
) -> InterventionInfo:
    """What the API tells a tenant about one version that it may use."""
    notes = registry.notes(stored)
    until = None if stored.deleted_at is None else int(stored.deleted_at + registry.retention_s)
    manifest = stored.manifest
    specs = manifest.interventions
    return InterventionInfo(
        name=registry.name_of(stored, tenant),
        tenant=wire_name(stored.tenant),
        version=stored.version,
        content_hash=stored.content_hash,
        size_bytes=stored.size_bytes,
        created=int(stored.created_at),
        base_model=manifest.base_model.id,
        formulas=tuple(dict.fromkeys(spec.formula for spec in specs)),
        components=tuple(dict.fromkeys(spec.component for spec in specs)),
        layers=tuple(sorted({spec.layer for spec in specs})),
        positions=tuple(dict.fromkeys(_positions(spec) for spec in specs)),
        num_parameters=_num_parameters(manifest),
        low_rank_dimension=max(spec.low_rank_dimension for spec in specs) or None,
        subspaces=manifest.subspaces,
        description=(manifest.description or "") if notes.description is None else notes.description,
        license=manifest.license or "",
        labels=dict(notes.labels),
        aliases=tuple(alias for alias, version in notes.aliases.items() if version == stored.version),
        deleted=None if stored.deleted_at is None else int(stored.deleted_at),
        restorable_until=until,
        provenance=provenance,
        state="loaded" if registry.is_loaded(stored) else "stored",
    )


def self_test_report(report: engine.SelfTestReport) -> SelfTestReport:
    """A trial forward's outcome on the wire."""
    return SelfTestReport(
        sites=tuple(
            SelfTestSite(
                layer=site.layer,
                component=site.component,
                num_edited_rows=site.num_edited_rows,
                delta_norm=site.delta_norm,
                residual_norm=site.residual_norm,
            )
            for site in report.sites
        ),
        duration_s=report.duration_s,
    )


def _positions(spec: InterventionSpec) -> str:
    positions = spec.positions
    return positions if isinstance(positions, str) else ",".join(map(str, positions))


def _num_parameters(manifest: Manifest) -> int:
    """Numbers in the file's tensors; a formula's optional ones are not counted, the manifest does not tell them."""
    total = 0
    for spec in manifest.parameter_groups:
        formula = FORMULAS[spec.formula]
        shapes = formula.parameter_shapes(spec.row_size(manifest.base_model.hidden_size), spec.low_rank_dimension)
        total += sum(math.prod(shape) for key, shape in shapes.items() if key not in formula.optional_parameters)
    return total
