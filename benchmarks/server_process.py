"""Server processes on free ports, and intervention files to upload to ours."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from benchmarks.pausable import PausableProcess
from reft_client import AsyncReftClient
from reft_interventions import FORMULAS, BaseModelRef, InterventionSet, InterventionSpec, Manifest
from reft_interventions.file_format import save

LAYERS = (4, 10, 15, 20, 26)


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


async def upload_random_sets(
    url: str, folder: Path, num_sets: int, *, positions: str = "f3+l3", prefix: str = "set"
) -> list[str]:
    """Write sets to `folder` and upload them; their names."""
    names = [f"{prefix}-{seed}" for seed in range(num_sets)]
    async with AsyncReftClient(url) as client:
        for seed, name in enumerate(names):
            path = folder / f"{name}.safetensors"
            write_random_set(path, seed, positions=positions)
            await client.interventions.upload(path, name)
    return names


def write_random_set(path: Path, seed: int, *, positions: str = "f3+l3", low_rank_dimension: int = 4) -> None:
    """A LoReFT set of five layers for SmolLM2-135M, random and strong enough to change its tokens."""
    generator = torch.Generator().manual_seed(seed)
    formula = FORMULAS["loreft"]
    groups = []
    for _ in LAYERS:
        group = formula.initial_parameters(576, low_rank_dimension, generator)
        group["learned_source_bias"] = 4.0 * torch.randn(low_rank_dimension, generator=generator)
        groups.append(group)
    specs = tuple(
        InterventionSpec(
            layer=layer,
            component="block_output",
            formula="loreft",
            low_rank_dimension=low_rank_dimension,
            positions=positions,
            parameters=index,
        )
        for index, layer in enumerate(LAYERS)
    )
    base = BaseModelRef(id="smollm2-135m-instruct", hidden_size=576, num_layers=30)
    save(InterventionSet.create(Manifest(name=f"random-{seed}", base_model=base, interventions=specs), groups), path)
