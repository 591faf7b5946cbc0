"""`/v1/interventions`: upload, list, show, download, delete."""

from __future__ import annotations

import asyncio
import os
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from reft_client.types import (
    DeleteResponse,
    Grant,
    GrantDeleted,
    GrantList,
    InterventionInfo,
    InterventionList,
    InterventionRef,
    InterventionUpload,
    SelfTestReport,
    VersionList,
)
from reft_interventions.errors import InterventionNotFoundError, InvalidInterventionNameError
from reft_interventions.store import StoredVersion
from reft_server.errors import InvalidRequestError, ReftError
from reft_server.tenants import Caller
from reft_server.tenants.model import tenant_of_wire_name, wire_name

from ..authentication import Reader, Upload
from ..context import ApiContext, Context
from ..intervention_info import intervention_info, self_test_report
from ..openapi import LOOKUP_RESPONSES, UPLOAD_BODY, UPLOAD_RESPONSES
from ..read_file import read_file
from ..upload import receive_upload

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])

OwnerQuery = Annotated[str | None, Query(description="Whose set it is, if it is neither the caller's nor shared.")]
VersionQuery = Annotated[str | None, Query(description="A number, or `sha256:` and at least 12 hex digits.")]


@router.post("", status_code=201, summary="Upload a file", responses=UPLOAD_RESPONSES, openapi_extra=UPLOAD_BODY)
async def upload_intervention(
    request: Request,
    caller: Upload,
    context: Context,
    name: Annotated[str | None, Query(description="The name to store it under.")] = None,
) -> InterventionUpload:
    """Store a `.safetensors` set as the next version of a name: checked, and tried in the engine, before it is named.

    The body is the file itself, or a multipart form with a part `file`. Requests in flight finish on the version
    that they started with.
    """
    try:
        stored, report = await _upload(request, caller, context, name)
    except ReftError as error:
        context.metrics.count_upload(error.code)
        raise
    context.metrics.count_upload("stored")
    return InterventionUpload(**_info(context, caller, stored).model_dump(), self_test=report)


async def _upload(
    request: Request, caller: Caller, context: ApiContext, name: str | None
) -> tuple[StoredVersion, SelfTestReport]:
    path = context.registry.new_upload_path()
    try:
        own_limit = context.directory.limits_of(caller.tenant.name).max_upload_bytes
        limit = context.settings.max_upload_bytes
        form_name = await receive_upload(request, path, limit if own_limit is None else min(limit, own_limit))
        name = form_name or name
        if not name:
            raise InvalidRequestError("name is missing: POST /v1/interventions?name=...", param="name")
        stored, report = await context.registry.add(path, name, tenant=caller.tenant.name)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return stored, self_test_report(report)


@router.get("", summary="List interventions")
async def list_interventions(caller: Reader, context: Context) -> InterventionList:
    """The newest version of every name: the caller's own, the shared ones, and what other tenants granted."""
    return InterventionList(data=await asyncio.to_thread(_infos, context, caller, None))


@router.get("/{name}", summary="Show one intervention", responses=LOOKUP_RESPONSES)
async def get_intervention(
    caller: Reader, context: Context, name: str, version: VersionQuery = None, tenant: OwnerQuery = None
) -> InterventionInfo:
    """The newest version, or the one asked for."""
    return _info(context, caller, _find(context, caller, _full_name(name, tenant), version))


@router.get("/{name}/versions", summary="List an intervention's versions", responses=LOOKUP_RESPONSES)
async def list_versions(caller: Reader, context: Context, name: str, tenant: OwnerQuery = None) -> VersionList:
    """Every version, oldest first."""
    full_name = _full_name(name, tenant)
    return VersionList(name=full_name, data=await asyncio.to_thread(_infos, context, caller, full_name))


@router.get(
    "/{name}/download", summary="Download the file", responses=LOOKUP_RESPONSES, response_class=StreamingResponse
)
async def download_intervention(
    caller: Upload, context: Context, name: str, version: VersionQuery = None, tenant: OwnerQuery = None
) -> Response:
    """The stored file, byte for byte as it was uploaded."""
    stored = _find(context, caller, _full_name(name, tenant), version)
    file = await asyncio.to_thread(context.registry.open, stored)
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{stored.name}-v{stored.version}.safetensors"',
        "etag": f'"{stored.content_hash}"',
    }
    return StreamingResponse(read_file(file), headers=headers, media_type="application/octet-stream")


@router.delete("/{name}", summary="Delete an intervention", responses=LOOKUP_RESPONSES)
async def delete_intervention(
    caller: Upload, context: Context, name: str, version: VersionQuery = None, tenant: OwnerQuery = None
) -> DeleteResponse:
    """One version, or without `version` all of them. Requests in flight finish with what they have."""
    if tenant and tenant_of_wire_name(tenant) != caller.tenant.name:
        raise InterventionNotFoundError(f"the caller has no intervention {_full_name(name, tenant)!r}", param="name")
    ref = _ref(name, version)
    deleted = await context.registry.delete(ref.name, ref.version, tenant=caller.tenant.name)
    return DeleteResponse(name=ref.name, version=deleted[0].version if ref.version is not None else None)


@router.get("/{name}/grants", summary="List a set's grants", responses=LOOKUP_RESPONSES)
async def list_grants(caller: Upload, context: Context, name: str) -> GrantList:
    """The tenants that may use a set of the caller's."""
    _check_own(context, caller, name)
    readers = context.directory.snapshot.readers.get((caller.tenant.name, name), frozenset())
    return GrantList(data=tuple(Grant(name=name, tenant=reader) for reader in sorted(readers)))


@router.put("/{name}/grants/{tenant}", summary="Let another tenant use a set", responses=LOOKUP_RESPONSES)
async def create_grant(caller: Upload, context: Context, name: str, tenant: str) -> Grant:
    """All versions, now and later, under `<caller's tenant>/<name>`, until it is taken back or the name is deleted.

    Whether there is such a tenant does not show.
    """
    _check_own(context, caller, name)
    await asyncio.to_thread(context.directory.grant, caller.tenant.name, name, tenant)
    return Grant(name=name, tenant=tenant)


@router.delete("/{name}/grants/{tenant}", summary="Take a grant back", responses=LOOKUP_RESPONSES)
async def delete_grant(caller: Upload, context: Context, name: str, tenant: str) -> GrantDeleted:
    """From the next request on; one that was not there is no error."""
    _check_own(context, caller, name)
    await asyncio.to_thread(context.directory.withdraw, caller.tenant.name, name, tenant)
    return GrantDeleted(name=name, tenant=tenant)


def _check_own(context: ApiContext, caller: Caller, name: str) -> None:
    """Only living sets of the caller's own namespace can be granted."""
    own = wire_name(caller.tenant.name)
    context.registry.get(f"{own}/{name}", tenant=caller.tenant.name)


def _ref(name: str, version: str | None) -> InterventionRef:
    try:
        return InterventionRef(name=name, version=version)
    except ValidationError as error:
        raise InvalidInterventionNameError(f"{name!r} can't be read as a name and a version", param="name") from error


def _full_name(name: str, tenant: str | None) -> str:
    return f"{tenant}/{name}" if tenant else name


def _find(context: ApiContext, caller: Caller, name: str, version: str | None) -> StoredVersion:
    ref = _ref(name, version)
    return context.registry.get(ref.name, ref.version, tenant=caller.tenant.name)


def _info(context: ApiContext, caller: Caller, stored: StoredVersion) -> InterventionInfo:
    name = context.registry.name_of(stored, caller.tenant.name)
    return intervention_info(stored, name, is_loaded=context.registry.is_loaded(stored))


def _infos(context: ApiContext, caller: Caller, name: str | None) -> tuple[InterventionInfo, ...]:
    registry, tenant = context.registry, caller.tenant.name
    found = registry.list(tenant) if name is None else registry.versions(name, tenant=tenant)
    return tuple(_info(context, caller, stored) for stored in found)
