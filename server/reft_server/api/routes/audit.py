"""`/v1/admin/audit`: the audit log, in pages and as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import StreamingResponse

from reft_client.types import AuditLog
from reft_server.tenants.audit import AuditQuery, pages

from ..authentication import NEEDS_ADMIN
from ..context import Context
from ..openapi import ERROR

router = APIRouter(
    prefix="/v1/admin/audit",
    tags=["administration"],
    dependencies=[NEEDS_ADMIN],
    responses={403: {**ERROR, "description": "The key lacks the scope admin."}},
)

Moment = Annotated[float | None, Query(ge=0, le=1e11, allow_inf_nan=False, description="Unix seconds.")]
_MAX_ID = (1 << 31) - 1


@dataclass(frozen=True)
class Filter:
    """Which entries to read; None = all."""

    tenant: Annotated[str | None, Query(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$", description="Whose things.")] = None
    action: Annotated[
        str | None, Query(pattern=r"^[a-z_.]{1,64}$", description="`key.revoke`; `key.` is everything about keys.")
    ] = None
    since: Moment = None
    until: Moment = None
    after: Annotated[int | None, Query(ge=0, le=_MAX_ID, description="The `last_id` of the page before.")] = None

    def query(self) -> AuditQuery:
        """The same for the database."""
        return AuditQuery(tenant=self.tenant, action=self.action, since=self.since, until=self.until, after=self.after)


Filtered = Annotated[Filter, Depends()]


@router.get("", summary="List audit entries")
async def list_entries(
    context: Context,
    chosen: Filtered,
    limit: Annotated[int, Query(ge=1, le=1000, description="Entries of a page.")] = 100,
    order: Annotated[Literal["asc", "desc"], Query(description="desc = the newest first.")] = "desc",
) -> AuditLog:
    """Every change of tenants, limits, keys, grants, sets, aliases, routes and settings: who, what and when."""
    query = replace(chosen.query(), limit=limit + 1, newest_first=order == "desc")
    found = await asyncio.to_thread(context.directory.audit_entries, query)
    page = found[:limit]
    return AuditLog(
        data=page,
        first_id=page[0].id if page else None,
        last_id=page[-1].id if page else None,
        has_more=len(found) > limit,
    )


@router.get(
    "/export",
    summary="Export audit entries",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}},
)
async def export_entries(context: Context, chosen: Filtered) -> StreamingResponse:
    """All of them, oldest first, as JSON lines; the next export goes on with `after` = the last line's `id`."""
    lines = pages(context.directory.audit_entries, chosen.query())
    first = await asyncio.to_thread(next, lines, "")
    return StreamingResponse(_rest(first, lines), media_type="application/x-ndjson")


async def _rest(first: str, lines: Iterator[str]) -> AsyncGenerator[str, None]:
    page = first
    while page:
        yield page
        page = await asyncio.to_thread(next, lines, "")
