"""The parts put together: what is said when ready, what is imported at start, and that a signal always ends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from reft_interventions.errors import StoreError
from reft_server.config import load_settings
from reft_server.errors import ConfigurationError
from reft_server.http_server import ready_text
from reft_server.registry import Registry
from reft_server.serving import _preloading, build_app

HANGING_SERVER = """
import asyncio, socket, uvicorn
from reft_server.http_server import HttpServer

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(3600)  # a shutdown that never ends

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
config = uvicorn.Config(app, log_config=None, lifespan="on")
HttpServer(config, "ready\\n", lambda: asyncio.sleep(0), grace_s=0.1, stop_deadline_s=0.3).run(sockets=[listener])
"""


class FakeRegistry:
    """Remembers the folders that it was asked to import."""

    def __init__(self, error: Exception | None = None) -> None:
        self.folders: list[str] = []
        self.error = error

    async def preload(self, folder: Path) -> tuple[SimpleNamespace, ...]:
        self.folders.append(folder.name)
        if self.error:
            raise self.error
        return (SimpleNamespace(reference=f"{folder.name}@1"),)


@asynccontextmanager
async def inner_lifespan(app: Any) -> AsyncGenerator[str, None]:
    """The app's own."""
    yield "state"


async def enter(registry: FakeRegistry, folder: Path) -> Any:
    """The state that the wrapped lifespan yields."""
    async with _preloading(inner_lifespan, cast("Registry", registry), folder)(cast("Any", None)) as state:
        return state


def test_preload_imports_the_folder_and_those_right_inside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("b", "a", "a/deeper"):
        (tmp_path / "examples" / name).mkdir(parents=True, exist_ok=True)
    registry = FakeRegistry()
    with caplog.at_level(logging.INFO, logger="reft_server"):
        assert asyncio.run(enter(registry, tmp_path / "examples")) == "state"
    assert registry.folders == ["examples", "a", "b"]
    assert "preload_imported reference=a@1" in caplog.text


@pytest.mark.parametrize("error", [StoreError("the disk is full"), OSError("the folder is gone")])
def test_preload_that_fails_is_logged_and_the_server_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    assert asyncio.run(enter(FakeRegistry(error), tmp_path)) == "state"
    assert f"reason={error}" in caplog.text


def test_preload_dir_that_is_no_folder_stops_the_start(tmp_path: Path) -> None:
    settings = load_settings({"preload_dir": tmp_path / "none", "store_dir": tmp_path / "store"})
    with pytest.raises(ConfigurationError, match="is not a folder"):
        build_app(settings)


@pytest.mark.parametrize(
    ("family", "host", "shown"),
    [
        (socket.AF_INET, "127.0.0.1", "http://127.0.0.1:"),
        (socket.AF_INET, "0.0.0.0", "http://127.0.0.1:"),
        (socket.AF_INET6, "::1", "http://[::1]:"),
    ],
)
def test_ready_text_shows_an_address_that_can_be_used(family: socket.AddressFamily, host: str, shown: str) -> None:
    with socket.socket(family) as listener:
        try:
            listener.bind((host, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {host}: {error}")
        text = ready_text(listener)
        assert f"ready on {shown}{listener.getsockname()[1]} " in text
    assert "curl" in text


def test_signal_ends_a_shutdown_that_hangs() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HANGING_SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "reft-serve: the shutdown took too long; ending without it"
