"""What runs a job: some prompts at once, each with an adapter of its own or with none."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from benchmarks.pausable import PausableProcess
from benchmarks.server_process import ServerProcess
from benchmarks.streaming import completion_body, stream_all

ROOT = Path(__file__).parents[2]
Adapters = Sequence[str | None]


class Runner(Protocol):
    """A process that runs jobs, and can be stopped while another one has its turn."""

    version: str

    def run_s(self, prompts: list[list[int]], num_new_tokens: int, adapters: Adapters) -> float:
        """Seconds until every prompt has its tokens, all sent at once."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class ServerRunner:
    """An OpenAI-compatible server that streams over HTTP.

    Args:
        adapter_field: the field of a request that names its adapter: `intervention`, or `model` elsewhere.
    """

    def __init__(self, server: ServerProcess, version: str, adapter_field: str = "intervention") -> None:
        self.version = version
        self._server, self._field = server, adapter_field

    @property
    def url(self) -> str:
        return self._server.url

    def run_s(self, prompts: list[list[int]], num_new_tokens: int, adapters: Adapters) -> float:
        bodies = [
            completion_body(prompt, num_new_tokens, **({self._field: adapter} if adapter else {}))
            for prompt, adapter in zip(prompts, adapters, strict=True)
        ]
        return asyncio.run(stream_all(self._server.url, bodies))[0]

    def pause(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def close(self) -> None:
        self._server.close()


class WorkerRunner(PausableProcess):
    """A module that `serve_jobs`, run by a python of any environment; no HTTP.

    Raises:
        RuntimeError: the process ended before it had loaded.
    """

    def __init__(self, module: str, *arguments: str, python: Path | None = None) -> None:
        environment = {**os.environ, "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        if python:  # our packages stay out of an environment that is not ours
            environment["PYTHONPATH"] = str(ROOT)
        command = [str(python or sys.executable), "-m", module, *arguments]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        try:
            self.version: str = json.loads(self._read_line())["version"]
        except RuntimeError:
            self.close()
            raise

    def run_s(self, prompts: list[list[int]], num_new_tokens: int, adapters: Adapters) -> float:
        job = {"prompts": prompts, "max_tokens": num_new_tokens, "adapters": list(adapters)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._read_line())["seconds"])

    def close(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        super().close()

    def _read_line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args[2]} ended with status {self._process.wait(30)}")
        return line
