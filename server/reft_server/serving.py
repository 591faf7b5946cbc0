"""The parts of a server put together, and the HTTP server around them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
from types import FrameType

import uvicorn
from fastapi import FastAPI

from reft_interventions import BaseModelSpec
from reft_interventions.file_format import FileLimits
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.base_model import load_base_model
from reft_server.config import Settings
from reft_server.engine import build_engine
from reft_server.engine.pool import InterventionPool
from reft_server.registry import Registry

logger = logging.getLogger(__name__)

_STOP_MARGIN_S = 10
"""Time after the requests' own that the engine gets to stop; then the process ends without it."""


class HttpServer(uvicorn.Server):
    """uvicorn that says when it is ready, and that a signal always ends."""

    def __init__(self, config: uvicorn.Config, ready_text: str, stop_deadline_s: float) -> None:
        super().__init__(config)
        self._ready_text = ready_text
        self._stop_deadline_s = stop_deadline_s
        self._has_deadline = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started:
            sys.stdout.write(self._ready_text)
            sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        if not self._has_deadline:
            self._has_deadline = True
            logger.info("server_stop signal=%s", signal.Signals(sig).name)
            # A daemon thread: it must fire while the main thread waits for a thread that never ends.
            deadline = threading.Timer(self._stop_deadline_s, _end_process)
            deadline.daemon = True
            deadline.start()


def _end_process() -> None:
    sys.stderr.write("reft-serve: the shutdown took too long; ending without it\n")
    sys.stderr.flush()
    os._exit(1)


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status.

    Args:
        listener: bound, not listening yet.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=settings.log_level == "debug",
        lifespan="on",
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
        server_header=False,
    )
    server = HttpServer(config, ready_text(listener), settings.shutdown_timeout_s + _STOP_MARGIN_S)
    server.run(sockets=[listener])
    return 0 if server.started else 1


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
