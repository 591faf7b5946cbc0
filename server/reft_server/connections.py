"""Connections that end when their client is too slow: uvicorn waits for ever for a head, and for a reader."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


@dataclass(frozen=True)
class ConnectionLimits:
    """What one client may take of the server's sockets.

    Args:
        max_connections: open at once; one more is closed before a byte is read.
        header_timeout_s: from the connection, or from a later request's first byte, to the end of the request's head;
            and for what a client still sends of a body after its request was answered.
        write_timeout_s: for a client to take what was sent, once the buffers are full.
    """

    max_connections: int = 4096
    header_timeout_s: float = 10.0
    write_timeout_s: float = 60.0


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration, with limits for connections."""

    def __init__(self, app: Any, limits: ConnectionLimits, **options: Any) -> None:
        super().__init__(app, http=GuardedProtocol, **options)
        self.connection_limits = limits


class GuardedProtocol(H11Protocol):
    """One connection, with a deadline whenever the client owes something but the body of a request that is served.

    The body's deadline is the API's, which can still answer.
    """

    def __init__(self, config: uvicorn.Config, *arguments: Any, **options: Any) -> None:
        super().__init__(config, *arguments, **options)
        self._limits = config.connection_limits if isinstance(config, HttpConfig) else ConnectionLimits()
        self._read_deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            transport.abort()
        else:
            self._start_read_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._write_deadline is None:
            # abort: close would wait until the client has read everything.
            self._write_deadline = self.loop.call_later(self._limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_write_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_read_deadline()
        self._end_write_deadline()
        super().connection_lost(exc)

    def _watch_reading(self) -> None:
        is_serving = self.cycle is not None and not self.cycle.response_complete
        # Between two requests uvicorn's own keep-alive timeout holds, until the first byte of the next.
        is_resting = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0] and self.cycle is not None
        if is_serving or is_resting:
            self._end_read_deadline()
        elif self._read_deadline is None:
            self._start_read_deadline()

    def _start_read_deadline(self) -> None:
        self._read_deadline = self.loop.call_later(self._limits.header_timeout_s, self.transport.abort)

    def _end_read_deadline(self) -> None:
        if self._read_deadline is not None:
            self._read_deadline.cancel()
            self._read_deadline = None

    def _end_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
