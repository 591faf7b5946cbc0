"""`/v1/interventions/{name}/aliases`: names such as `prod` for one version, promoted and rolled back."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from reft_client.types import Alias, AliasDeleted, AliasList, AliasMove, AliasRequest
from reft_interventions.errors import InterventionNotFoundError
from reft_interventions.store import StoredVersion
from reft_server.tenants import Caller

from ..authentication import Reader, Upload
from ..context import ApiContext, Context
from ..lookup import OwnerQuery, find, find_own
from ..once import IdempotencyKey, do_once, fingerprint
from ..openapi import CONFLICT_RESPONSES, LOOKUP_RESPONSES, ONCE_RESPONSES

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])


@router.get("/{name}/aliases", summary="List a set's aliases", responses=LOOKUP_RESPONSES)
async def list_aliases(caller: Reader, context: Context, name: str, tenant: OwnerQuery = None) -> AliasList:
    """By name, each with the version that it names; an alias of a deleted version has no content hash."""
    stored = find(context, caller, name, tenant, None)
    aliases = context.registry.notes(stored).aliases
    return AliasList(data=tuple(_alias(context, caller, stored, alias, aliases[alias]) for alias in sorted(aliases)))


@router.get("/{name}/aliases/{alias}", summary="Show an alias and its history", responses=LOOKUP_RESPONSES)
async def get_alias(caller: Reader, context: Context, name: str, alias: str, tenant: OwnerQuery = None) -> Alias:
    """What it names and named before, the latest first: a rollback goes one step back."""
    stored = find(context, caller, name, tenant, None)
    moves = await asyncio.to_thread(context.sets.alias_history, stored.tenant, stored.name, alias)
    history = tuple(AliasMove(version=move.version, moved=int(move.moved_at)) for move in moves)
    shown = _alias(context, caller, stored, alias, moves[0].version)
    return shown.model_copy(update={"history": history})


@router.put("/{name}/aliases/{alias}", summary="Promote a version to an alias", responses=LOOKUP_RESPONSES)
async def put_alias(caller: Upload, context: Context, name: str, alias: str, body: AliasRequest) -> Alias:
    """Make it, or move it, from the next request on; requests in flight finish on the version they resolved.

    `version` may be another alias: `{"version": "staging"}` promotes what is staged now.
    """
    stored = find_own(context, caller, name, body.version)
    book = context.sets
    previous = await asyncio.to_thread(book.move_alias, stored.tenant, stored.name, alias, stored.version)
    return _alias(context, caller, stored, alias, stored.version).model_copy(update={"previous": previous})


@router.post(
    "/{name}/aliases/{alias}/rollback",
    summary="Roll an alias back",
    response_model=Alias,
    responses=CONFLICT_RESPONSES | ONCE_RESPONSES,
)
async def roll_back_alias(
    request: Request, caller: Upload, context: Context, name: str, alias: str, idempotency_key: IdempotencyKey = None
) -> Response:
    """Let it name what it named before, at once; again, and it goes one step further back."""
    stored = find_own(context, caller, name)

    async def roll_back() -> Alias:
        version, previous = await asyncio.to_thread(context.sets.roll_back, stored.tenant, stored.name, alias)
        return _alias(context, caller, stored, alias, version).model_copy(update={"previous": previous})

    return await do_once(context, caller, idempotency_key, fingerprint(request), roll_back)


@router.delete("/{name}/aliases/{alias}", summary="Delete an alias", responses=LOOKUP_RESPONSES)
async def delete_alias(caller: Upload, context: Context, name: str, alias: str) -> AliasDeleted:
    """The version it names lives on."""
    stored = find_own(context, caller, name)
    await asyncio.to_thread(context.sets.delete_alias, stored.tenant, stored.name, alias)
    return AliasDeleted(name=name, alias=alias)


def _alias(context: ApiContext, caller: Caller, stored: StoredVersion, alias: str, version: int) -> Alias:
    name = context.registry.name_of(stored, caller.tenant.name)
    try:
        content_hash = context.registry.get(name, version, tenant=caller.tenant.name).content_hash
    except InterventionNotFoundError:
        content_hash = ""
    return Alias(name=name, alias=alias, version=version, content_hash=content_hash)
