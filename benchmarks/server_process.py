"""A real `reft-serve` process on a free port, and intervention files to upload to it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch

from reft_interventions import FORMULAS, BaseModelRef, InterventionSet, InterventionSpec, Manifest
from reft_interventions.file_format import save

LAYERS = (4, 10, 15, 20, 26)


@contextmanager
def running_server(store_dir: Path, *flags: str) -> Iterator[str]:
    """The URL of a server that is ready; it is stopped when the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "reft_server.cli", "--port", str(port), "--store-dir", str(store_dir), *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with status {process.returncode} before it was ready")
        try:
            if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError("the server was not ready within 120 s")


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
