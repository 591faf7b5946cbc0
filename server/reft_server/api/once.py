"""Routes that take an `Idempotency-Key`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from reft_server.tenants import Caller
from reft_server.tenants.idempotency import KeptAnswer

from .context import ApiContext

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="idempotency-key",
        min_length=1,
        max_length=255,
        description="With the same key within 24 hours, the same request is done once and answered alike.",
    ),
]


def fingerprint(request: Request, *parts: str) -> str:
    """A hash of what makes a request the same: method, path, query, and what of the body matters."""
    text = "\n".join((request.method, request.url.path, str(request.query_params), *parts))
    return hashlib.sha256(text.encode()).hexdigest()


async def do_once(
    context: ApiContext,
    caller: Caller,
    key: str | None,
    request_fingerprint: str,
    work: Callable[[], Awaitable[BaseModel]],
    *,
    status: int = 200,
) -> Response:
    """The answer of `work`; or, where a request with this key was done already, its answer. Errors are not kept.

    Raises:
        IdempotencyKeyReusedError, IdempotencyKeyInUseError: see `IdempotencyKeys.begin`.
    """
    if key is None:
        return _response(KeptAnswer(status, (await work()).model_dump_json()))
    tenant = caller.tenant.name
    kept = await asyncio.to_thread(context.idempotency.begin, tenant, key, request_fingerprint)
    if kept is not None:
        return _response(kept, {"idempotency-replayed": "true"})
    try:
        answer = KeptAnswer(status, (await work()).model_dump_json())
    except BaseException:
        await asyncio.to_thread(context.idempotency.give_up, tenant, key)
        raise
    # If this fails, the key stays taken: better no answer than the work done twice.
    await asyncio.to_thread(context.idempotency.finish, tenant, key, answer)
    return _response(answer)


def _response(answer: KeptAnswer, headers: dict[str, str] | None = None) -> Response:
    return Response(answer.body, answer.status, headers, media_type="application/json")
