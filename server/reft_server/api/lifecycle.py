"""Whether this server takes requests, and how many it still owes an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from reft_server.errors import ServerDrainingError

PROBE_PATHS = frozenset({"/health", "/ready", "/version", "/metrics"})
"""Answered to the last, and waited for by nobody."""


class Lifecycle:
    """Counts requests in flight; once it drains, it lets those finish and refuses others. For one event loop."""

    def __init__(self) -> None:
        self.is_draining = False
        self._num_active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def drain(self) -> None:
        """Refuse new requests from now on."""
        self.is_draining = True

    def check(self) -> None:
        """Raises `ServerDrainingError` once the server is shutting down."""
        if self.is_draining:
            raise ServerDrainingError("This server is shutting down; another one, or this one later, takes the request")

    @contextmanager
    def serving(self, path: str) -> Iterator[None]:
        """Count a request while it runs.

        Raises:
            ServerDrainingError: it came too late; probes never do.
        """
        if path in PROBE_PATHS:
            yield
            return
        self.check()
        self._num_active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_active -= 1
            if not self._num_active:
                self._idle.set()

    async def wait_until_idle(self) -> None:
        """Return when no request is in flight."""
        await self._idle.wait()
