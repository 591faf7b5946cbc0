"""`/v1/interventions/{name}/card`: the model card of a set, in markdown."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from reft_client.types import InterventionInfo
from reft_server.errors import InvalidRequestError, PayloadTooLargeError

from ..authentication import Reader, Upload
from ..context import Context
from ..lookup import OwnerQuery, detailed_info, find, find_own, info
from ..model_card import default_card
from ..openapi import LOOKUP_RESPONSES

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])

_MAX_CARD_BYTES = 64 << 10
_MARKDOWN = "text/markdown"
_MARKDOWN_CONTENT: dict[str, Any] = {_MARKDOWN: {"schema": {"type": "string"}}}


@router.get(
    "/{name}/card",
    summary="Show a set's model card",
    response_class=Response,
    responses={200: {"content": _MARKDOWN_CONTENT}, **LOOKUP_RESPONSES},
)
async def get_card(caller: Reader, context: Context, name: str, tenant: OwnerQuery = None) -> Response:
    """What its owner wrote, or else what the server knows of the newest version."""
    stored = find(context, caller, name, tenant, None)
    card = await asyncio.to_thread(context.sets.card, stored.tenant, stored.name)
    text = default_card(info(context, caller, stored)) if card is None else card
    # No browser is to take it for a page.
    return Response(text, headers={"x-content-type-options": "nosniff"}, media_type=_MARKDOWN)


@router.put(
    "/{name}/card",
    summary="Write a set's model card",
    responses=LOOKUP_RESPONSES,
    openapi_extra={"requestBody": {"required": True, "content": _MARKDOWN_CONTENT}},
)
async def put_card(request: Request, caller: Upload, context: Context, name: str) -> InterventionInfo:
    """The body is the card, in UTF-8, at most 64 KiB. It is the name's, not a version's."""
    stored = find_own(context, caller, name)
    body = await request.body()
    if len(body) > _MAX_CARD_BYTES:
        raise PayloadTooLargeError(f"A model card has at most {_MAX_CARD_BYTES} bytes", param="card")
    try:
        card = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError("The card is not UTF-8", param="card") from error
    if "\0" in card:
        raise InvalidRequestError("The card holds a NUL character", param="card")
    await asyncio.to_thread(context.sets.set_card, stored.tenant, stored.name, card)
    return await detailed_info(context, caller, stored)


@router.delete("/{name}/card", summary="Take a set's model card away", responses=LOOKUP_RESPONSES)
async def delete_card(caller: Upload, context: Context, name: str) -> InterventionInfo:
    """Then the server makes one up from what it knows."""
    stored = find_own(context, caller, name)
    await asyncio.to_thread(context.sets.set_card, stored.tenant, stored.name, None)
    return await detailed_info(context, caller, stored)
