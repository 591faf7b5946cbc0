"""Server-sent events: `data: {json}` per event, then `data: [DONE]`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from reft_server.errors import InternalServerError, ReftError

from .context import count_error
from .disconnect import run_until_disconnect
from .errors_table import error_json

logger = logging.getLogger(__name__)

DONE = "[DONE]"


class EventStreamResponse(Response):
    """A stream of JSON events that ends at once when the client goes away.

    The response starts with the first event: a failure before it is an ordinary error response with its own
    status. A later one is sent as an event `{"error": ...}`, and the stream ends without `[DONE]`.

    Args:
        events: JSON texts; closed (`aclose`) however the response ends.
        headers: of the response, besides those of every stream.
        background: runs once the whole stream has been sent, if the client is still there.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        headers: Mapping[str, str] = MappingProxyType({}),
        background: BackgroundTask | None = None,
    ) -> None:
        own = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers={**headers, **own}, background=background)
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events; the ASGI entry point.

        Raises:
            ReftError: the first event failed, nothing was sent yet.
            ClientDisconnect: the client went away.
        """
        async with contextlib.aclosing(self._events):
            await run_until_disconnect(self._send_events(scope, send), receive)
        if self.background is not None:
            await self.background()

    async def _send_events(self, scope: Scope, send: Send) -> None:
        first = await anext(self._events)
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _send_event(send, first)
        try:
            async for event in self._events:
                await _send_event(send, event)
            await _send_event(send, DONE)
        except ReftError as error:
            await _send_error(scope, send, error)
        except (OSError, ClientDisconnect) as error:
            raise ClientDisconnect from error
        except Exception:  # the client must get an end, whatever broke; the log keeps the cause
            request_id = scope.get("state", {}).get("request_id", "")
            logger.exception("stream_failed")
            await _send_error(scope, send, InternalServerError(request_id))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send_event(send: Send, data: str) -> None:
    await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


async def _send_error(scope: Scope, send: Send, error: ReftError) -> None:
    count_error(scope, error)
    await _send_event(send, error_json(error))
