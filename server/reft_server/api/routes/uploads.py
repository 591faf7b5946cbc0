"""`POST /v1/interventions`: upload a set."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from reft_client.types import InterventionUpload
from reft_interventions.errors import InterventionManifestError
from reft_interventions.manifest import parse_json
from reft_interventions.store import PutCondition
from reft_server.errors import InvalidRequestError, ReftError
from reft_server.tenants import Caller
from reft_server.tenants.set_book import Origin

from ..authentication import Upload
from ..conditions import etag, put_condition
from ..context import ApiContext, Context
from ..digests import BodyDigest
from ..intervention_info import self_test_report
from ..lookup import info
from ..once import IdempotencyKey, do_once, fingerprint
from ..openapi import UPLOAD_BODY, UPLOAD_RESPONSES
from ..upload import receive_upload

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])

ConditionHeader = Annotated[str | None, Header(max_length=4096)]
HashQuery = Annotated[
    str | None,
    Query(pattern=r"^sha256:[0-9a-f]{64}$", description="The content hash that the server must find, as it counts it."),
]
ProvenanceQuery = Annotated[
    str | None, Query(max_length=4096, description="A JSON object: what you want to know later of where this is from.")
]


@router.post(
    "",
    status_code=201,
    summary="Upload a file",
    response_model=InterventionUpload,
    responses=UPLOAD_RESPONSES,
    openapi_extra=UPLOAD_BODY,
)
async def upload_intervention(
    request: Request,
    caller: Upload,
    context: Context,
    name: Annotated[str | None, Query(description="The name to store it under.")] = None,
    content_hash: HashQuery = None,
    provenance: ProvenanceQuery = None,
    if_match: ConditionHeader = None,
    if_none_match: ConditionHeader = None,
    content_digest: ConditionHeader = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Store a `.safetensors` set as the next version of a name: checked, and tried in the engine, before it is named.

    The body is the file itself, or a multipart form with a part `file`. Requests in flight finish on the version
    that they started with. With `If-Match: "sha256:…"` it is stored only if the newest version has that content, with
    `If-None-Match: *` only if there is none; with `Content-Digest` (RFC 9530) only if the body arrived unchanged.
    """
    path = context.registry.new_upload_path()
    try:
        condition, digest = put_condition(if_match, if_none_match), BodyDigest(content_digest)
        origin = Origin(details=_details(provenance))
        limit = _limit(context, caller)
        name = await receive_upload(request, path, limit, digest) or name
        if not name:
            raise InvalidRequestError("name is missing: POST /v1/interventions?name=...", param="name")
        sent = ""
        if idempotency_key is not None:  # the file's own bytes: each form has another boundary around them
            sent = fingerprint(
                request, name, await asyncio.to_thread(_sha256, path), if_match or "", if_none_match or ""
            )

        async def store(name: str = name) -> InterventionUpload:
            return await _store(context, caller, path, name, condition, origin, content_hash)

        response = await do_once(context, caller, idempotency_key, sent, store, status=201)
    except ReftError as error:
        context.metrics.count_upload(error.code)
        raise
    finally:
        await asyncio.to_thread(path.unlink, missing_ok=True)
    response.headers["etag"] = etag(json.loads(bytes(response.body))["content_hash"])
    return response


async def _store(
    context: ApiContext,
    caller: Caller,
    path: Path,
    name: str,
    condition: PutCondition,
    origin: Origin,
    content_hash: str | None,
) -> InterventionUpload:
    stored, report = await context.registry.add(
        path, name, tenant=caller.tenant.name, condition=condition, origin=origin, content_hash=content_hash
    )
    context.metrics.count_upload("stored")
    return InterventionUpload(**info(context, caller, stored).model_dump(), self_test=self_test_report(report))


def _limit(context: ApiContext, caller: Caller) -> int:
    own = context.directory.limits_of(caller.tenant.name).max_upload_bytes
    return min(context.settings.max_upload_bytes, context.settings.max_upload_bytes if own is None else own)


def _details(provenance: str | None) -> dict[str, Any]:
    if provenance is None:
        return {}
    try:
        details = parse_json(provenance)
    except InterventionManifestError as error:
        raise InvalidRequestError(f"provenance: {error.message}", param="provenance") from error
    if not isinstance(details, dict):
        raise InvalidRequestError("provenance must be a JSON object", param="provenance")
    return details


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
