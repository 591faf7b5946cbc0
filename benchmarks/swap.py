"""How long until an uploaded or unloaded intervention answers?

Question: time to the first token with a set (a) just uploaded, (b) on disk but not loaded, above a warm request's.
Baseline: the same request with a set that is loaded, sent right after, in the same run. Each set is used cold once.
Ceiling: 0 ms, a swap that nobody notices.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.adapter_files import write_random_set
from benchmarks.machine import median
from benchmarks.options import Options, parse_options
from benchmarks.server_process import running_server


def first_token_s(client: httpx.Client, name: str) -> float:
    """Seconds of a request for one token, sent to answered."""
    body = {"prompt": "The weather today is", "max_tokens": 1, "temperature": 0, "intervention": name}
    started = time.perf_counter()
    client.post("/v1/completions", json=body).raise_for_status()
    return time.perf_counter() - started


def upload_s(client: httpx.Client, path: Path, name: str) -> float:
    """Seconds of an upload: validation, self-test and storing included."""
    started = time.perf_counter()
    client.post("/v1/interventions", params={"name": name}, content=path.read_bytes()).raise_for_status()
    return time.perf_counter() - started


NUM_SETS, NUM_QUICK_SETS = 16, 3


def measure(options: Options, num_sets: int) -> dict[str, Any]:
    """Milliseconds: of warm requests, and what the first use costs above the warm one after it."""
    uploads, fresh, unloaded, warm = [], [], [], []
    flags = (*options.server_flags, "--log-level", "warning")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        with running_server(store, *flags) as url, httpx.Client(base_url=url, timeout=60) as client:
            for seed in range(num_sets):
                path = Path(folder) / f"{seed}.safetensors"
                write_random_set(path, seed, model=options.model)
                uploads.append(upload_s(client, path, f"set-{seed}"))
                first = first_token_s(client, f"set-{seed}")
                warm.append(first_token_s(client, f"set-{seed}"))
                fresh.append(first - warm[-1])
        with running_server(store, *flags) as url, httpx.Client(base_url=url, timeout=60) as client:
            first_token_s(client, "set-0")  # the server's own first request
            for seed in range(1, num_sets):
                first = first_token_s(client, f"set-{seed}")
                warm.append(first_token_s(client, f"set-{seed}"))
                unloaded.append(first - warm[-1])
    return {
        "warm_ms": _spread(warm),
        "upload_ms": _spread(uploads),
        "just_uploaded_above_warm_ms": _spread(fresh),
        "not_loaded_above_warm_ms": _spread(unloaded),
    }


def _spread(seconds: list[float]) -> dict[str, float]:
    milliseconds = [1e3 * value for value in seconds]
    return {"median": round(median(milliseconds), 1), "max": round(max(milliseconds), 1)}


def run(options: Options) -> dict[str, Any]:
    """Measure, and keep the figures; the result."""
    num_sets = NUM_QUICK_SETS if options.is_quick else NUM_SETS
    with options.hold_machine(is_exclusive=True):
        options.check_quiet()
        figures = measure(options, num_sets)
    return options.keep("swap", {"sets": "LoReFT r4, five layers", "num_sets": num_sets}, figures)


if __name__ == "__main__":
    run(parse_options(__doc__))
