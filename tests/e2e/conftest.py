"""The real server process, with the default model, on a free port; and intervention files for it."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import openai
import pytest
import torch

from reft_interventions import FORMULAS, BaseModelRef, InterventionSet, InterventionSpec, Manifest, dumps
from reft_server.base_model import default_model_path

START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
MAX_UPLOAD_BYTES = 1 << 20

MakeFile = Callable[..., bytes]


@dataclass(frozen=True)
class Server:
    """A running server. `max_upload_bytes` is a megabyte, `max_body_bytes` 100 kB."""

    url: str
    process: subprocess.Popen[str]
    store_folder: Path

    def stored_files(self) -> set[Path]:
        """Everything in the store but the index and its lock."""
        files = (path for path in self.store_folder.rglob("*") if path.is_file())
        return {path for path in files if not path.name.startswith(("index", "open.lock"))}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started once, as a user starts it. That SIGTERM ends it is checked."""
    if not default_model_path().is_dir():
        pytest.fail(f"the default model is not in {default_model_path()}: run `reft-serve --fetch-only` once")
    folder = tmp_path_factory.mktemp("e2e")
    command = [
        *(sys.executable, "-m", "reft_server.cli", "--port", "0", "--store-dir", str(folder / "store")),
        *("--max-upload-bytes", str(MAX_UPLOAD_BYTES), "--max-body-bytes", "100000"),
        *("--engine-kv-cache-bytes", str(256 << 20), "--fine-tuning-niceness", "0"),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REFT_")}
    with (folder / "server.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            yield Server(wait_for_url(process, log), process, folder / "store")
        finally:
            process.terminate()
            try:
                status = process.wait(STOP_TIMEOUT_S)
            finally:
                process.kill()
                process.communicate()
    assert status == 0, "SIGTERM drains the server and ends it well, in time"


def wait_for_url(process: subprocess.Popen[str], log: IO[str]) -> str:
    """Where a server that was just started listens, once it does."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            found = re.search(r"http://127\.0\.0\.1:\d+", lines.get(timeout=0.2))
        except queue.Empty:
            continue
        if found:
            return found[0]
    log.seek(0)
    raise RuntimeError(f"the server did not start:\n{log.read()[-4000:]}")


@pytest.fixture(scope="session")
def http(server: Server) -> Iterator[httpx.Client]:
    """A plain HTTP client of the server."""
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, unmodified."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def make_file() -> MakeFile:
    """`make_file(seed, strength=..., hidden_size=..., num_layers=..., **spec)`: a random LoReFT set's bytes.

    It is strong enough to change the answers visibly.
    """
    config = json.loads((default_model_path() / "config.json").read_text(encoding="utf-8"))
    default_hidden_size, default_num_layers = config["hidden_size"], config["num_hidden_layers"]

    def make(
        seed: int,
        *,
        strength: float = 60.0,
        hidden_size: int = default_hidden_size,
        num_layers: int = default_num_layers,
        **spec: object,
    ) -> bytes:
        return dumps(_random_set(hidden_size, num_layers, seed, strength, spec))

    return make


def _random_set(
    hidden_size: int, num_layers: int, seed: int, strength: float, fields: dict[str, object]
) -> InterventionSet:
    defaults = {
        "layer": num_layers // 2,
        "component": "block_output",
        "formula": "loreft",
        "low_rank_dimension": 4,
        "positions": "f3+l3",
        "parameters": 0,
    }
    spec = InterventionSpec.model_validate(defaults | fields)
    manifest = Manifest(
        name="e2e",
        base_model=BaseModelRef(id="smollm2-135m-instruct", hidden_size=hidden_size, num_layers=num_layers),
        interventions=(spec,),
    )
    generator = torch.Generator().manual_seed(seed)
    parameters = FORMULAS[spec.formula].initial_parameters(hidden_size, spec.low_rank_dimension, generator)
    parameters["learned_source_bias"] = strength * torch.randn(spec.low_rank_dimension, generator=generator)
    return InterventionSet.create(manifest, [parameters])
