"""Around every request: its id, its time, the limits on its body and on requests at once, and the last resort."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reft_server.errors import (
    EngineOverloadedError,
    InternalServerError,
    PayloadTooLargeError,
    ReftError,
    ServerDrainingError,
)
from reft_server.request_context import RequestContext, current_request, note, serving
from reft_server.tenants import Caller
from reft_server.tenants.meters import Meter, Meters
from reft_server.tenants.model import wire_name

from .authentication import PUBLIC_PATHS, Authenticator, set_caller
from .context import LiveSettings, count_error
from .errors_table import error_response
from .lifecycle import PROBE_PATHS, Lifecycle

if TYPE_CHECKING:
    from reft_server.tracing import Tracing

logger = logging.getLogger(__name__)

GENERATION_PATHS = frozenset({"/v1/completions", "/v1/chat/completions"})
MULTIPART_OVERHEAD_BYTES = 64 << 10
_CLIENT_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_DRAIN_BYTES = 64 << 20
_DRAIN_TIME_S = 5.0
_MIN_BODY_BYTES_PER_S = 1024


class RequestMiddleware:
    """Gives each request an id, a clock and a caller, bounds it, and turns what nobody caught into a 500.

    The id in `x-request-id` is the client's where it sends a sane one. It is for logs only: nothing is keyed by it.

    Args:
        settings: as they are at the moment.
        upload_limit: the largest file that a path takes now, bytes; None = it takes a JSON body.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: LiveSettings,
        lifecycle: Lifecycle,
        authenticator: Authenticator,
        meters: Meters,
        upload_limit: Callable[[str], int | None],
        tracing: Tracing | None = None,
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._tracing = tracing
        self._authenticator = authenticator
        self._meters = meters
        self._live_settings = settings
        self._upload_limit = upload_limit
        self._num_generating = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI entry point."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _RequestIdHeaders(scope, send)
        with serving(sent.request_id) as request:
            if self._tracing is None or scope["path"] in PROBE_PATHS:
                await self._logged(request, scope, receive, sent)
                return
            with self._tracing.request(_method(scope), Headers(scope=scope)) as request.trace:
                await self._logged(request, scope, receive, sent)

    async def _logged(self, request: RequestContext, scope: Scope, receive: Receive, sent: _RequestIdHeaders) -> None:
        try:
            await self._answered(scope, receive, sent)
        finally:
            _log_end(request, scope, sent)
            if request.trace is not None:
                fields = {**request.fields, "request_id": request.request_id, "tenant": request.tenant}
                request.trace.end(_method(scope), _route(scope), sent.status, fields)

    async def _answered(self, scope: Scope, receive: Receive, sent: _RequestIdHeaders) -> None:
        """Pass the request on, and answer it if nobody else has."""
        try:
            with self._lifecycle.serving(scope["path"]):
                await self._bounded(scope, receive, sent)
        except ServerDrainingError as error:
            sent.closes_connection = True
            await _refuse(error, scope, receive, sent)
        except ClientDisconnect:
            note(error="client_disconnected")
        except ReftError as error:
            await _refuse(error, scope, receive, sent)
        except Exception:
            logger.exception("request_failed")
            if sent.has_started:
                raise
            await _refuse(InternalServerError(sent.request_id), scope, receive, sent)

    async def _bounded(self, scope: Scope, receive: Receive, send: _RequestIdHeaders) -> None:
        headers = Headers(scope=scope)
        if scope["path"] in PUBLIC_PATHS:
            await self._app(scope, receive, send)
            return
        # before a byte of the body is read
        send.meter = meter = self._meters.of(self._authenticate(scope, headers).tenant.name)
        meter.take_request()
        upload_limit, settings = self._upload_limit(scope["path"]), self._live_settings.current
        limit = settings.max_body_bytes if upload_limit is None else upload_limit + MULTIPART_OVERHEAD_BYTES
        body = _BoundedBody(receive, limit, settings.body_timeout_s)
        await body.check_declared(headers)
        if scope["path"] not in GENERATION_PATHS:
            await self._app(scope, body.receive, send)
            return
        if self._num_generating >= settings.max_concurrent_requests:
            raise EngineOverloadedError(f"{self._num_generating} requests are running already; try again soon")
        self._num_generating += 1
        try:
            with meter.running():
                await self._app(scope, body.receive, send)
        finally:
            self._num_generating -= 1

    def _authenticate(self, scope: Scope, headers: Headers) -> Caller:
        caller = self._authenticator.caller(headers)
        set_caller(scope, caller)
        request = current_request()
        if request is not None and not caller.is_open:
            request.tenant, request.key_id = wire_name(caller.tenant.name), caller.key_id
        return caller


def _method(scope: Scope) -> str:
    """The request's method, unless it is one that a client made up."""
    return scope["method"] if scope["method"] in _METHODS else "other"


def _route(scope: Scope) -> str:
    """The pattern of the path; `none` where no route took it."""
    return getattr(scope.get("route"), "path", "none")


def _log_end(request: RequestContext, scope: Scope, sent: _RequestIdHeaders) -> None:
    """One line per request, at debug for probes. The route is the path's pattern: a path holds names of clients."""
    level = logging.DEBUG if scope["path"] in PROBE_PATHS else logging.INFO
    if logger.isEnabledFor(level):
        fields: dict[str, str | int | float] = {"method": _method(scope), "route": _route(scope), "status": sent.status}
        fields |= {"duration_ms": round(sent.duration_s * 1000, 1)} | request.fields
        logger.log(level, "request_ended", extra={"fields": fields})


async def _refuse(error: ReftError, scope: Scope, receive: Receive, send: Send) -> None:
    count_error(scope, error)
    await error_response(error)(scope, receive, send)


class _RequestIdHeaders:
    """A `send` that adds `x-request-id`, `openai-processing-ms` and the caller's `x-ratelimit-*` to the response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        chosen = Headers(scope=scope).get("x-request-id", "")
        self.request_id = chosen if _CLIENT_REQUEST_ID.fullmatch(chosen) else f"req-{uuid.uuid4().hex}"
        self.status = 0  # nothing was sent yet
        self.closes_connection = False
        self.meter: Meter | None = None
        self._send = send
        self._started_at = time.monotonic()
        scope.setdefault("state", {})["request_id"] = self.request_id

    @property
    def has_started(self) -> bool:
        """A response is on its way: it is too late for another one."""
        return self.status > 0

    @property
    def duration_s(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self._started_at

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.request_id
            headers["x-content-type-options"] = "nosniff"  # what clients upload is never a page, whatever it looks like
            if self.closes_connection:
                headers["connection"] = "close"
            if self.meter is not None:
                headers.update(self.meter.headers())
            headers["openai-processing-ms"] = str(round(self.duration_s * 1000))
        await self._send(message)


class _BoundedBody:
    """A `receive` that refuses a body as soon as it is known to be too large, and one that comes too slowly.

    What a client is still sending is read and dropped for a while, because a connection closed under a sender
    loses the answer.
    """

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout_s = timeout_s
        self._started_at = asyncio.get_running_loop().time()
        self._num_bytes = 0
        self._is_complete = False

    async def check_declared(self, headers: Headers) -> None:
        """Refuse by `content-length`, before anything is read.

        Raises:
            PayloadTooLargeError: it is too large.
        """
        declared = headers.get("content-length", "")
        if declared.isascii() and declared.isdigit() and int(declared[:20]) > self._limit:
            if "expect" not in headers:  # with "expect: 100-continue" nothing is on its way yet
                await self._drain()
            raise PayloadTooLargeError(self._message())

    async def receive(self) -> Message:
        """The next message of the body.

        Raises:
            HTTPException: the body is too large or too slow; this type, because FastAPI lets it through.
        """
        if self._is_complete:  # what comes now is the end of the connection, which nobody is in a hurry for
            return await self._receive()
        latest = self._started_at + self._timeout_s + self._num_bytes / _MIN_BODY_BYTES_PER_S
        try:
            async with asyncio.timeout_at(min(latest, asyncio.get_running_loop().time() + self._timeout_s)):
                message = await self._receive()
        except TimeoutError as error:
            text = f"The body came too slowly: {self._num_bytes} bytes so far"
            raise HTTPException(408, text, {"connection": "close"}) from error
        self._is_complete = not message.get("more_body", False)
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._limit:
            if message.get("more_body", False):
                await self._drain()
            raise HTTPException(413, self._message())
        return message

    def _message(self) -> str:
        return f"The body is larger than {self._limit} bytes"

    async def _drain(self) -> None:
        dropped = 0
        try:
            async with asyncio.timeout(_DRAIN_TIME_S):
                while dropped < _DRAIN_BYTES:
                    message = await self._receive()
                    dropped += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            logger.debug("drain_timeout dropped_bytes=%d", dropped)
