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
from reft_server.preload import preloading
from reft_server.registry import Registry
from reft_server.serving import build_app

HANGING_SERVER = """
import asyncio, gc, socket, uvicorn
from reft_server.http_server import HttpServer

async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print(gc.get_freeze_count() > 10_000, flush=True)
    await asyncio.sleep(3600)  # a shutdown that never ends

listener = socket.socket()
listener.bind(("127.0.0.1", 0))
config = uvicorn.Config(app, log_config=None, lifespan="on")
HttpServer(config, "ready\\n", lambda: asyncio.sleep(0), grace_s=0.1, stop_deadline_s=0.3).run(sockets=[listener])
"""


class FakeRegistry:
    """Remembers the folders whose files it was asked to read, and knows all of their sets already but for `a`'s."""

    def __init__(self, folder: Path, error: Exception | None = None) -> None:
        self.folders: list[str] = []
        self.loader = SimpleNamespace(read_new=self.read_new)
        self.error = error
        self.temporary = folder / "upload"

    def read_new(self, path: Path) -> tuple[SimpleNamespace, None]:
        if self.error:
            raise self.error
        self.folders.append(path.parent.name)
        return SimpleNamespace(manifest=SimpleNamespace(name=path.parent.name), content_hash="sha256:1"), None

    def has_content(self, name: str, _content_hash: str) -> bool:
        return name != "a"

    def new_upload_path(self) -> Path:
        return self.temporary

    async def add(self, _path: Path, name: str, **_options: object) -> tuple[SimpleNamespace, None]:
        return SimpleNamespace(reference=f"{name}@1"), None


@asynccontextmanager
async def inner_lifespan(app: Any) -> AsyncGenerator[str, None]:
    """The app's own."""
    yield "state"


async def enter(registry: FakeRegistry, folder: Path) -> Any:
    """The state that the wrapped lifespan yields."""
    async with preloading(inner_lifespan, cast("Registry", registry), folder)(cast("Any", None)) as state:
        return state


def test_preload_imports_the_folder_and_those_right_inside_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in (".", "b", "a", "a/deeper"):
        (tmp_path / "examples" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "examples" / name / "one.safetensors").touch()
    registry = FakeRegistry(tmp_path)
    with caplog.at_level(logging.INFO, logger="reft_server"):
        assert asyncio.run(enter(registry, tmp_path / "examples")) == "state"
    assert registry.folders == ["examples", "a", "b"]
    assert "preload_imported reference=a@1" in caplog.text


@pytest.mark.parametrize("error", [StoreError("the disk is full"), OSError("the folder is gone")])
def test_preload_that_fails_is_logged_and_the_server_starts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    (tmp_path / "one.safetensors").touch()
    assert asyncio.run(enter(FakeRegistry(tmp_path, error), tmp_path)) == "state"
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
        stdout, stderr = process.communicate(timeout=60)
    assert stdout == "True\n", "full collections have to pass over all modules"
    assert process.returncode == 1
    assert stderr.splitlines()[-1] == "reft-serve: the shutdown took too long; ending without it"
