"""`POST /v1/interventions`: upload a set."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.requests import Request

from reft_client.types import InterventionUpload, SelfTestReport
from reft_interventions.store import StoredVersion
from reft_server.errors import InvalidRequestError, ReftError
from reft_server.tenants import Caller

from ..authentication import Upload
from ..conditions import put_condition
from ..context import ApiContext, Context
from ..intervention_info import self_test_report
from ..lookup import info
from ..openapi import UPLOAD_BODY, UPLOAD_RESPONSES
from ..upload import receive_upload

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])

ConditionHeader = Annotated[str | None, Header(max_length=4096)]


@router.post("", status_code=201, summary="Upload a file", responses=UPLOAD_RESPONSES, openapi_extra=UPLOAD_BODY)
async def upload_intervention(
    request: Request,
    caller: Upload,
    context: Context,
    name: Annotated[str | None, Query(description="The name to store it under.")] = None,
    if_match: ConditionHeader = None,
    if_none_match: ConditionHeader = None,
) -> InterventionUpload:
    """Store a `.safetensors` set as the next version of a name: checked, and tried in the engine, before it is named.

    The body is the file itself, or a multipart form with a part `file`. Requests in flight finish on the version
    that they started with. With `If-Match: "sha256:…"` it is stored only if the newest version has that content, with
    `If-None-Match: *` only if there is none.
    """
    try:
        stored, report = await _upload(request, caller, context, name, if_match, if_none_match)
    except ReftError as error:
        context.metrics.count_upload(error.code)
        raise
    context.metrics.count_upload("stored")
    return InterventionUpload(**info(context, caller, stored).model_dump(), self_test=report)


async def _upload(
    request: Request,
    caller: Caller,
    context: ApiContext,
    name: str | None,
    if_match: str | None,
    if_none_match: str | None,
) -> tuple[StoredVersion, SelfTestReport]:
    condition = put_condition(if_match, if_none_match)
    path = context.registry.new_upload_path()
    try:
        own_limit = context.directory.limits_of(caller.tenant.name).max_upload_bytes
        limit = context.settings.max_upload_bytes
        form_name = await receive_upload(request, path, limit if own_limit is None else min(limit, own_limit))
        name = form_name or name
        if not name:
            raise InvalidRequestError("name is missing: POST /v1/interventions?name=...", param="name")
        stored, report = await context.registry.add(path, name, tenant=caller.tenant.name, condition=condition)
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    return stored, self_test_report(report)
