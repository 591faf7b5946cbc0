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
    InterventionInfo,
    InterventionList,
    InterventionRef,
    InterventionUpload,
    SelfTestReport,
    VersionList,
)
from reft_interventions.errors import InvalidInterventionNameError
from reft_interventions.store import StoredVersion
from reft_server.errors import InvalidRequestError, ReftError

from ..context import ApiContext, Context
from ..intervention_info import intervention_info, self_test_report
from ..openapi import LOOKUP_RESPONSES, UPLOAD_BODY, UPLOAD_RESPONSES
from ..read_file import read_file
from ..upload import receive_upload

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])

VersionQuery = Annotated[str | None, Query(description="A number, or `sha256:` and at least 12 hex digits.")]


@router.post("", status_code=201, summary="Upload a file", responses=UPLOAD_RESPONSES, openapi_extra=UPLOAD_BODY)
async def upload_intervention(
    request: Request,
    context: Context,
    name: Annotated[str | None, Query(description="The name to store it under.")] = None,
) -> InterventionUpload:
    """Store a `.safetensors` set as the next version of a name: checked, and tried in the engine, before it is named.

    The body is the file itself, or a multipart form with a part `file`. Requests in flight finish on the version
    that they started with.
    """
    try:
        stored, report = await _upload(request, context, name)
    except ReftError as error:
        context.metrics.count_upload(error.code)
        raise
    context.metrics.count_upload("stored")
    return InterventionUpload(**_info(context, stored).model_dump(), self_test=report)


async def _upload(request: Request, context: ApiContext, name: str | None) -> tuple[StoredVersion, SelfTestReport]:
    path = context.registry.new_upload_path()
    try:
        form_name = await receive_upload(request, path, context.settings.max_upload_bytes)
        name = form_name or name
        if not name:
            raise InvalidRequestError("name is missing: POST /v1/interventions?name=...", param="name")
        stored, report = await context.registry.add(path, name)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return stored, self_test_report(report)


@router.get("", summary="List interventions")
async def list_interventions(context: Context) -> InterventionList:
    """The newest version of every name."""
    return InterventionList(data=await asyncio.to_thread(_infos, context, None))


@router.get("/{name}", summary="Show one intervention", responses=LOOKUP_RESPONSES)
async def get_intervention(context: Context, name: str, version: VersionQuery = None) -> InterventionInfo:
    """The newest version, or the one asked for."""
    return _info(context, _find(context, name, version))


@router.get("/{name}/versions", summary="List an intervention's versions", responses=LOOKUP_RESPONSES)
async def list_versions(context: Context, name: str) -> VersionList:
    """Every version, oldest first."""
    return VersionList(name=name, data=await asyncio.to_thread(_infos, context, name))


@router.get(
    "/{name}/download", summary="Download the file", responses=LOOKUP_RESPONSES, response_class=StreamingResponse
)
async def download_intervention(context: Context, name: str, version: VersionQuery = None) -> Response:
    """The stored file, byte for byte as it was uploaded."""
    stored = _find(context, name, version)
    file = await asyncio.to_thread(context.registry.open, stored)
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{stored.name}-v{stored.version}.safetensors"',
        "etag": f'"{stored.content_hash}"',
    }
    return StreamingResponse(read_file(file), headers=headers, media_type="application/octet-stream")


@router.delete("/{name}", summary="Delete an intervention", responses=LOOKUP_RESPONSES)
async def delete_intervention(context: Context, name: str, version: VersionQuery = None) -> DeleteResponse:
    """One version, or without `version` all of them. Requests in flight finish with what they have."""
    ref = _ref(name, version)
    deleted = await context.registry.delete(ref.name, ref.version)
    return DeleteResponse(name=ref.name, version=deleted[0].version if ref.version is not None else None)


def _ref(name: str, version: str | None) -> InterventionRef:
    try:
        return InterventionRef(name=name, version=version)
    except ValidationError as error:
        raise InvalidInterventionNameError(f"{name!r} can't be read as a name and a version", param="name") from error


def _find(context: ApiContext, name: str, version: str | None) -> StoredVersion:
    ref = _ref(name, version)
    return context.registry.get(ref.name, ref.version)


def _info(context: ApiContext, stored: StoredVersion) -> InterventionInfo:
    return intervention_info(stored, is_loaded=context.registry.is_loaded(stored))


def _infos(context: ApiContext, name: str | None) -> tuple[InterventionInfo, ...]:
    found = context.registry.list() if name is None else context.registry.versions(name)
    return tuple(_info(context, stored) for stored in found)
