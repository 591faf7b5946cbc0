"""`/v1/interventions/{name}/grants`: who else may use a set."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter

from reft_client.types import Grant, GrantDeleted, GrantList

from ..authentication import Upload
from ..context import Context
from ..lookup import find_own
from ..openapi import LOOKUP_RESPONSES

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])


@router.get("/{name}/grants", summary="List a set's grants", responses=LOOKUP_RESPONSES)
async def list_grants(caller: Upload, context: Context, name: str) -> GrantList:
    """The tenants that may use a set of the caller's."""
    find_own(context, caller, name)
    readers = context.directory.snapshot.readers.get((caller.tenant.name, name), frozenset())
    return GrantList(data=tuple(Grant(name=name, tenant=reader) for reader in sorted(readers)))


@router.put("/{name}/grants/{tenant}", summary="Let another tenant use a set", responses=LOOKUP_RESPONSES)
async def create_grant(caller: Upload, context: Context, name: str, tenant: str) -> Grant:
    """All versions, now and later, under `<caller's tenant>/<name>`, until it is taken back or the name is deleted.

    Whether there is such a tenant does not show.
    """
    find_own(context, caller, name)
    await asyncio.to_thread(context.directory.grant, caller.tenant.name, name, tenant)
    return Grant(name=name, tenant=tenant)


@router.delete("/{name}/grants/{tenant}", summary="Take a grant back", responses=LOOKUP_RESPONSES)
async def delete_grant(caller: Upload, context: Context, name: str, tenant: str) -> GrantDeleted:
    """From the next request on; one that was not there is no error."""
    find_own(context, caller, name)
    await asyncio.to_thread(context.directory.withdraw, caller.tenant.name, name, tenant)
    return GrantDeleted(name=name, tenant=tenant)
