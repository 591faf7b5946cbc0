"""`/v1/admin`: tenants, their limits and their API keys."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Annotated

from fastapi import APIRouter, Body

from reft_client.types import (
    ApiKeyInfo,
    ApiKeyList,
    ApiKeyRequest,
    ApiKeyRotation,
    CreatedApiKey,
    SettingsReload,
    TenantDeleted,
    TenantInfo,
    TenantLimits,
    TenantList,
    TenantRequest,
)
from reft_server import tenants
from reft_server.errors import ConfigurationError, SettingsReloadError, TenantNotFoundError
from reft_server.tenants.keys import NewKey
from reft_server.tenants.model import key_state, tenant_of_wire_name, wire_name

from ..authentication import NEEDS_ADMIN
from ..context import Context
from ..openapi import ERROR

router = APIRouter(
    prefix="/v1/admin",
    tags=["administration"],
    dependencies=[NEEDS_ADMIN],
    responses={403: {**ERROR, "description": "The key lacks the scope admin."}},
)


@router.post("/tenants", status_code=201, summary="Add a tenant", responses={409: ERROR})
async def create_tenant(context: Context, body: TenantRequest) -> TenantInfo:
    """A namespace of its own; keys for it come next."""
    limits = tenants.TenantLimits(**body.limits.model_dump())
    return _tenant_info(await asyncio.to_thread(context.directory.create_tenant, body.name, limits))


@router.get("/tenants", summary="List tenants")
async def list_tenants(context: Context) -> TenantList:
    """By name, `shared` (the operator's own) first."""
    found = sorted(context.directory.snapshot.tenants.values(), key=lambda tenant: tenant.name)
    return TenantList(data=tuple(_tenant_info(tenant) for tenant in found))


@router.get("/tenants/{tenant}", summary="Show one tenant", responses={404: ERROR})
async def get_tenant(context: Context, tenant: str) -> TenantInfo:
    """Its limits; what is not set there is the server's default."""
    found = context.directory.snapshot.tenants.get(tenant_of_wire_name(tenant))
    if found is None:
        raise TenantNotFoundError(f"There is no tenant {tenant[:64]!r}", param="tenant")
    return _tenant_info(found)


@router.delete("/tenants/{tenant}", summary="Delete a tenant", responses={404: ERROR})
async def delete_tenant(context: Context, tenant: str) -> TenantDeleted:
    """Its keys end first; then its sets, jobs and files are removed for good, and what others granted to it ends.

    The audit log keeps its entries. After a failure midway, the same request goes on where that one stopped.
    """
    name = tenant_of_wire_name(tenant)
    await asyncio.to_thread(context.directory.close_tenant, name)
    if context.tuning is not None:
        await context.tuning.forget(name)
    await context.registry.forget(name)
    await asyncio.to_thread(context.directory.delete_tenant, name)
    await context.registry.forget(name)  # an upload that was under way
    return TenantDeleted(name=tenant)


@router.put("/tenants/{tenant}/limits", summary="Set a tenant's limits", responses={404: ERROR})
async def set_limits(context: Context, tenant: str, body: TenantLimits) -> TenantInfo:
    """All of them: what the body leaves out becomes the server's default. They hold from the next request on."""
    limits = tenants.TenantLimits(**body.model_dump())
    return _tenant_info(await asyncio.to_thread(context.directory.set_limits, tenant_of_wire_name(tenant), limits))


@router.post("/tenants/{tenant}/keys", status_code=201, summary="Make an API key", responses={404: ERROR})
async def create_key(context: Context, tenant: str, body: ApiKeyRequest) -> CreatedApiKey:
    """The answer is the only place where the key is ever shown."""
    made = await asyncio.to_thread(
        context.directory.create_key,
        tenant_of_wire_name(tenant),
        tuple(dict.fromkeys(body.scopes)),
        description=body.description,
        expires_at=None if body.expires_in_s is None else time.time() + body.expires_in_s,
    )
    return _created(*made)


@router.get("/tenants/{tenant}/keys", summary="List a tenant's API keys", responses={404: ERROR})
async def list_keys(context: Context, tenant: str) -> ApiKeyList:
    """Oldest first, with those that are revoked or have expired."""
    await get_tenant(context, tenant)
    name = tenant_of_wire_name(tenant)
    found = [key for key in context.directory.snapshot.keys.values() if key.tenant == name]
    return ApiKeyList(data=tuple(_key_info(key) for key in sorted(found, key=lambda key: (key.created_at, key.key_id))))


@router.post("/keys/{key_id}/rotate", status_code=201, summary="Replace an API key", responses={404: ERROR})
async def rotate_key(
    context: Context, key_id: str, body: Annotated[ApiKeyRotation | None, Body()] = None
) -> CreatedApiKey:
    """A new key with the same rights. The old one ends after `overlap_s` seconds, by default at once."""
    overlap_s = 0.0 if body is None else body.overlap_s
    return _created(*await asyncio.to_thread(context.directory.rotate_key, key_id, overlap_s=overlap_s))


@router.delete("/keys/{key_id}", summary="Revoke an API key", responses={404: ERROR})
async def revoke_key(context: Context, key_id: str) -> ApiKeyInfo:
    """Here it ends with the answer, on other servers of the same store within two seconds."""
    return _key_info(await asyncio.to_thread(context.directory.revoke_key, key_id))


@router.post("/reload", summary="Read the settings file again", responses={409: ERROR})
async def reload_settings(context: Context) -> SettingsReload:
    """What can change takes effect for the requests that come next; where a value is wrong, nothing does."""
    try:
        found = await context.reload()
    except ConfigurationError as error:
        raise SettingsReloadError(error.message, param=error.param) from error
    return SettingsReload(changed=found.changed, needs_restart=found.needs_restart)


def _tenant_info(tenant: tenants.Tenant) -> TenantInfo:
    limits = TenantLimits(**dataclasses.asdict(tenant.limits))
    return TenantInfo(name=wire_name(tenant.name), created=int(tenant.created_at), limits=limits)


def _key_info(key: tenants.ApiKey) -> ApiKeyInfo:
    return ApiKeyInfo(
        id=key.key_id,
        tenant=wire_name(key.tenant),
        scopes=tuple(sorted(key.scopes)),
        description=key.description,
        created=int(key.created_at),
        expires_at=None if key.expires_at is None else int(key.expires_at),
        revoked_at=None if key.revoked_at is None else int(key.revoked_at),
        state=key_state(key, time.time()),
    )


def _created(key: tenants.ApiKey, born: NewKey) -> CreatedApiKey:
    return CreatedApiKey(**_key_info(key).model_dump(), key=born.text)
