"""How long until an uploaded or unloaded intervention answers?

Question: time to the first token with a set (a) just uploaded, (b) on disk but not loaded, above a warm request's.
Baseline: the same request with a set that is loaded, sent right after, in the same run. Each set is used cold once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import write_result
from benchmarks.machine import describe, median
from benchmarks.server_process import running_server, write_random_set


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


def measure(num_sets: int) -> dict[str, Any]:
    """Milliseconds: of warm requests, and what the first use costs above the warm one after it."""
    uploads, fresh, unloaded, warm = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        with running_server(store) as url, httpx.Client(base_url=url, timeout=60) as client:
            for seed in range(num_sets):
                path = Path(folder) / f"{seed}.safetensors"
                write_random_set(path, seed)
                uploads.append(upload_s(client, path, f"set-{seed}"))
                first = first_token_s(client, f"set-{seed}")
                warm.append(first_token_s(client, f"set-{seed}"))
                fresh.append(first - warm[-1])
        with running_server(store) as url, httpx.Client(base_url=url, timeout=60) as client:
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


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=16, help="sets to upload and swap in (default 16)")
    args = parser.parse_args()
    job = {
        "model": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "sets": "LoReFT r4, five layers",
        "num_sets": args.sets,
    }
    result = {"benchmark": "swap", "machine": describe(), "job": job, **measure(args.sets)}
    write_result("swap", result)


if __name__ == "__main__":
    main()
