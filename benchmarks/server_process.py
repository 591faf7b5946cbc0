"""Server processes on free ports."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.pausable import PausableProcess


class ServerProcess(PausableProcess):
    """An HTTP server on a free port of this machine.

    Args:
        command: starts it; `{port}` stands for the port.
        environment: variables on top of this process's.
        log_path: takes what it prints; None = only its standard output is dropped.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, log_path: Path | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        with (log_path or Path(os.devnull)).open("wb") as log:
            super().__init__(
                [part.replace("{port}", port) for part in command],
                stdout=log,
                stderr=None if log_path is None else log,
                env={**os.environ, **(environment or {})},
            )

    def wait_until_ready(self, path: str = "/ready", timeout_s: float = 120) -> None:
        """Return once `path` answers 200.

        Raises:
            RuntimeError: the process ended, or the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended with status {self._process.returncode} before it was ready")
            try:
                if httpx.get(f"{self.url}{path}", timeout=2).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        raise RuntimeError(f"the server was not ready within {timeout_s:g} s")


def start_server(store_dir: Path, *flags: str, log_path: Path | None = None) -> ServerProcess:
    """Our own server; not yet ready."""
    command = [sys.executable, "-m", "reft_server.cli", "--port", "{port}", "--store-dir", str(store_dir), *flags]
    return ServerProcess(command, log_path=log_path)


@contextmanager
def running_server(store_dir: Path, *flags: str) -> Iterator[str]:
    """The URL of a server that is ready; it is stopped when the block ends."""
    server = start_server(store_dir, *flags)
    try:
        server.wait_until_ready()
        yield server.url
    finally:
        server.close()
