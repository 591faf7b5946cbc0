"""How the routes of `/v1/interventions` find the set that a path names."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import Query
from pydantic import ValidationError

from reft_client.types import InterventionInfo, InterventionRef, Provenance
from reft_interventions.errors import InterventionNotFoundError, InvalidInterventionNameError
from reft_interventions.store import StoredVersion
from reft_server.tenants import Caller
from reft_server.tenants.model import tenant_of_wire_name, wire_name
from reft_server.tenants.set_book import Origin

from .context import ApiContext
from .intervention_info import intervention_info

OwnerQuery = Annotated[str | None, Query(description="Whose set it is, if it is neither the caller's nor shared.")]
VersionQuery = Annotated[str | None, Query(description="A number, an alias, or `sha256:` and at least 12 hex digits.")]


def reference(name: str, version: str | None) -> InterventionRef:
    """The name and the version that a path and its query give.

    Raises:
        InvalidInterventionNameError: they can't be read as such.
    """
    try:
        return InterventionRef(name=name, version=version)
    except ValidationError as error:
        raise InvalidInterventionNameError(f"{name!r} can't be read as a name and a version", param="name") from error


def full_name(name: str, tenant: str | None) -> str:
    """The name with its owner, where one was given."""
    return f"{tenant}/{name}" if tenant else name


def find(context: ApiContext, caller: Caller, name: str, tenant: str | None, version: str | None) -> StoredVersion:
    """The living version that a request names. Raises as `Registry.get` does."""
    ref = reference(full_name(name, tenant), version)
    return context.registry.get(ref.name, ref.version, tenant=caller.tenant.name)


def find_own(context: ApiContext, caller: Caller, name: str, version: int | str | None = None) -> StoredVersion:
    """The same in the caller's own namespace, whatever others share. Raises as `Registry.get` does."""
    own = wire_name(caller.tenant.name)
    return context.registry.get(f"{own}/{name}", version, tenant=caller.tenant.name)


def check_owner(caller: Caller, name: str, tenant: str | None) -> None:
    """Refuse to change what `tenant` owns unless that is the caller.

    Raises:
        InterventionNotFoundError: it is another; whether it has the set does not show.
    """
    if tenant and tenant_of_wire_name(tenant) != caller.tenant.name:
        raise InterventionNotFoundError(f"the caller has no intervention {full_name(name, tenant)!r}", param="name")


def info(context: ApiContext, caller: Caller, stored: StoredVersion) -> InterventionInfo:
    """What the caller is told about a version."""
    return intervention_info(context.registry, stored, caller.tenant.name)


async def detailed_info(context: ApiContext, caller: Caller, stored: StoredVersion) -> InterventionInfo:
    """The same, with where the version comes from."""
    origins = await asyncio.to_thread(context.sets.origins, stored.tenant, stored.name)
    origin = origins.get(stored.version)
    provenance = _provenance(stored, origin, is_owner=stored.tenant == caller.tenant.name)
    return intervention_info(context.registry, stored, caller.tenant.name, provenance)


def _provenance(stored: StoredVersion, origin: Origin | None, *, is_owner: bool) -> Provenance:
    training = stored.manifest.training
    if origin is None:
        return Provenance(training=training)
    key_id = origin.key_id if is_owner else None
    return Provenance(source=origin.source, key_id=key_id, details=dict(origin.details), training=training)
