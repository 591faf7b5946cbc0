"""The HTTP server around the app: it says when it is ready, reloads at SIGHUP, and drains before it stops."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from .api.context import ApiContext
from .api.lifecycle import Lifecycle
from .config import Settings
from .connections import ConnectionLimits, HttpConfig
from .errors import ReftError
from .logging_setup import handle_loop_exception
from .reload import SettingsReload

logger = logging.getLogger(__name__)

_ANSWER_MARGIN_S = 5
"""Time after the requests' own in which those that the stopping engine ended get their error through."""
_STOP_MARGIN_S = 10
"""Time after the requests' own that the whole shutdown gets; then the process ends without it."""


class HttpServer(uvicorn.Server):
    """uvicorn that says when it is ready, drains before it stops, and that a signal always ends.

    From the first signal on it goes on listening, and refuses what is new, until nothing runs or `grace_s` is over.
    Then it ends, with status 0 after SIGTERM.

    Args:
        stop_engine: ends every request that runs or waits, with a typed error.
        grace_s: time that requests get to finish at shutdown before `stop_engine`.
        stop_deadline_s: time from the signal to the end of the process, whatever hangs.
        lifecycle: of the app that is served.
        reload: what SIGHUP does; None = it ends the process, as when a terminal is closed.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready_text: str,
        stop_engine: Callable[[], Awaitable[None]],
        *,
        grace_s: float,
        stop_deadline_s: float,
        lifecycle: Lifecycle | None = None,
        reload: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        super().__init__(config)
        self.grace_s = grace_s
        self._ready_text = ready_text
        self._stop_engine = stop_engine
        self._stop_margin_s = stop_deadline_s - grace_s
        self._lifecycle = lifecycle or Lifecycle()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None
        self._reload = reload
        self._reloading: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(handle_loop_exception)
        for listener in sockets or ():  # inherited by its connections, which otherwise hold the port after the end
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await super().startup(sockets=sockets)
        self._loop = loop
        if self._reload is not None:
            loop.add_signal_handler(signal.SIGHUP, self._start_reload)
        # A full collection walks all objects, and nothing runs meanwhile: 0.25 s with torch and transformers. What is
        # here now stays, so that later ones look at requests alone.
        gc.collect()
        gc.freeze()
        if self.started:
            sys.stdout.write(self._ready_text)
            sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Drain at the first signal; a second Ctrl-C does not wait."""
        if sig == signal.SIGINT or self._loop is None:
            self._captured_signals.append(sig)  # has its usual effect once the server has ended
        if self._lifecycle.is_draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._lifecycle.drain()
        logger.info("server_stop signal=%s", signal.Signals(sig).name)
        # A daemon thread: it must fire while the main thread waits for a thread that never ends.
        deadline = threading.Timer(self.grace_s + self._stop_margin_s, _end_process)
        deadline.daemon = True
        deadline.start()
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._start_draining)

    def _start_reload(self) -> None:
        self._reloading = asyncio.get_running_loop().create_task(self._try_reload())

    async def _try_reload(self) -> None:
        if self._reload is None:
            return
        try:
            await self._reload()
        except ReftError as error:
            logger.error("settings_reload_failed reason=%s", error.message)

    def _start_draining(self) -> None:
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.grace_s):
                await self._lifecycle.wait_until_idle()
        except TimeoutError:
            logger.warning("server_stop grace_s=%g: ending the requests that still run", self.grace_s)
            await self._stop_engine()
        finally:
            self.should_exit = True


def _end_process() -> None:
    sys.stderr.write("reft-serve: the shutdown took too long; ending without it\n")
    sys.stderr.flush()
    os._exit(1)


def run(app: FastAPI, settings: Settings, listener: socket.socket, reload: SettingsReload) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status. For the arguments see `make_server`."""
    server = make_server(app, settings, listener, reload)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def make_server(app: FastAPI, settings: Settings, listener: socket.socket, reload: SettingsReload) -> HttpServer:
    """The server around an app of `build_app`; it does not run yet.

    Args:
        listener: bound, not listening yet.
        reload: what SIGHUP does where there is a settings file.
    """
    config = HttpConfig(
        app,
        _connection_limits(settings),
        log_config=None,
        access_log=False,  # it would hold the names in paths and queries; the API logs every request itself
        lifespan="on",
        timeout_graceful_shutdown=_ANSWER_MARGIN_S,
        server_header=False,
    )
    context: ApiContext = app.state.context
    server = HttpServer(
        config,
        ready_text(listener),
        context.engine.stop,
        grace_s=settings.shutdown_timeout_s,
        stop_deadline_s=settings.shutdown_timeout_s + _STOP_MARGIN_S,
        lifecycle=context.lifecycle,
        reload=None if settings.config is None else reload,
    )

    def use(new: Settings) -> None:
        config.connection_limits = _connection_limits(new)
        server.grace_s = new.shutdown_timeout_s

    reload.on_change(use)
    return server


def _connection_limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(settings.max_connections, settings.header_timeout_s, settings.write_timeout_s)


def ready_text(listener: socket.socket) -> str:
    """What a newcomer sees once the server listens: its address, and a request to try."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # a browser can't go to "any address"
        host = "127.0.0.1"
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return (
        f"\nreft-serve is ready on {url} (API: {url}/docs; Ctrl-C stops it). Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "What is the capital of France?"}]}\'\n\n'
        f"  curl {url}/v1/interventions\n\n"
    )
