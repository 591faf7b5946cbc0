"""Does the server stay whole under a long mess?

Question: minutes of full load with random disconnects, uploads, re-uploads under one name, deletes and bad requests,
under a KV cache, a prefix cache and a pool small enough for preemption and eviction all the time. Afterwards: does
every request have an end, is nothing running or waiting, is the KV cache empty, is memory flat, and did greedy
prompts get the same answers throughout?
Baseline: the answers of the same prompts one by one before the load. No ceiling: nothing is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import write_result
from benchmarks.machine import describe, median
from benchmarks.server_process import ServerProcess, start_server
from benchmarks.soak_traffic import (
    COMPLETIONS,
    INTERVENTIONS,
    MAX_UPLOAD_BYTES,
    NUM_CHURNING,
    NUM_FIXED,
    QUESTIONS,
    SYSTEM,
    Canary,
    Traffic,
    canary_body,
    write_contents,
)

NUM_WORKERS = 48
LEAST_MARGIN = 0.02
"""Of a known answer's tokens over the runners-up, in log probability: far above what rounding moves."""
MAX_RSS_GROWTH = 0.03
NUM_SAMPLES = 60
TOTALS = ("prompt_tokens", "generation_tokens", "engine_steps", "num_preemptions", "prefix_cache_evictions")
FLAGS = (
    *("--max-upload-bytes", str(MAX_UPLOAD_BYTES)),
    *("--intervention-pool-bytes", "1MiB"),
    *("--engine-kv-cache-bytes", "256MiB"),
    *("--engine-prefix-cache-bytes", "64MiB"),
)


async def find_canaries(client: httpx.AsyncClient) -> list[Canary]:
    """Requests with a clear answer, asked one by one of the base model and of every fixed set."""
    canaries = []
    for question in QUESTIONS:
        for name in (None, *(f"fixed-{index}" for index in range(NUM_FIXED))):
            prompt = SYSTEM + question
            response = await client.post(COMPLETIONS, json={**canary_body(prompt, name), "logprobs": 2})
            choice = response.raise_for_status().json()["choices"][0]
            gaps = [abs(first - second) for first, second in map(_two_best, choice["logprobs"]["top_logprobs"])]
            if min(gaps) >= LEAST_MARGIN:
                canaries.append(Canary(prompt, name, choice["text"]))
    return canaries


def _two_best(top_logprobs: dict[str, float]) -> tuple[float, float]:
    first, *rest = sorted(top_logprobs.values(), reverse=True)
    return first, rest[0] if rest else -math.inf


async def read_metrics(client: httpx.AsyncClient) -> dict[str, float]:
    """Every unlabelled metric of the server, without its prefix."""
    lines = (await client.get("/metrics")).text.splitlines()
    pairs = (line.split(" ") for line in lines if line.startswith("reft:") and "{" not in line)
    return {name.removeprefix("reft:"): float(value) for name, value in pairs}


class Sampler:
    """The server's memory, open files, tasks and load, every `interval_s` seconds."""

    def __init__(self, client: httpx.AsyncClient, pid: int, interval_s: float) -> None:
        self.series: list[dict[str, float]] = []
        self._interval_s = interval_s
        self._client, self._process = client, Path("/proc") / str(pid)
        self._started = time.monotonic()

    async def run(self) -> None:
        while True:
            await self.sample()
            await asyncio.sleep(self._interval_s)

    async def sample(self) -> None:
        """Add one point to the series."""
        metrics = await read_metrics(self._client)
        pages = int((self._process / "statm").read_text().split()[1])
        self.series.append(
            {
                "time_s": round(time.monotonic() - self._started),
                "rss_mib": round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1),
                "num_open_files": len(list((self._process / "fd").iterdir())),
                "num_tasks": metrics["event_loop_tasks"],
                **{name: metrics[f"num_requests_{name}"] for name in ("running", "waiting")},
                "kv_cache_usage_perc": round(metrics["kv_cache_usage_perc"], 3),
            }
        )

    def growth(self, key: str) -> float:
        """The last quarter's median over the second quarter's, less 1."""
        values = [sample[key] for sample in self.series]
        quarter = max(1, len(values) // 4)
        return median(values[-quarter:]) / median(values[quarter : 2 * quarter] or values[:1]) - 1


async def drain(client: httpx.AsyncClient, timeout_s: float = 30) -> dict[str, float]:
    """The metrics once nothing runs or waits, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        metrics = await read_metrics(client)
        is_idle = not metrics["num_requests_running"] and not metrics["num_requests_waiting"]
        if is_idle or time.monotonic() > deadline:
            return metrics
        await asyncio.sleep(0.2)


async def soak(server: ServerProcess, contents: list[bytes], minutes: float, seed: int) -> dict[str, Any]:
    """Load the server; counts by outcome, the series and the verdict."""
    limits = httpx.Limits(max_connections=NUM_WORKERS + 2)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        names = [f"fixed-{index}" for index in range(NUM_FIXED)] + [f"churn-{index}" for index in range(NUM_CHURNING)]
        for name, content in zip(names, contents, strict=True):
            (await client.post(INTERVENTIONS, params={"name": name}, content=content)).raise_for_status()
        canaries = await find_canaries(client)
        print(f"{len(canaries)} prompts with a clear answer", flush=True)
        traffic = Traffic(client, contents, canaries)
        sampler = Sampler(client, server.pid, 60 * minutes / NUM_SAMPLES)
        deadline = time.monotonic() + 60 * minutes

        async def work(index: int) -> None:
            rng = random.Random(f"{seed}/{index}")
            while time.monotonic() < deadline:
                await (traffic.swap(rng) if index == 0 else traffic.act(rng))

        sampling = asyncio.create_task(sampler.run())
        await asyncio.gather(*(work(index) for index in range(NUM_WORKERS)))
        sampling.cancel()
        after = await drain(client)
        last_answers = [await client.post(COMPLETIONS, json=each.body(each.intervention)) for each in canaries]
        is_ready = (await client.get("/ready")).status_code == 200
    unexpected = sum(count for outcome, count in traffic.outcomes.items() if outcome.startswith("unexpected"))
    checks = {
        "nothing_unexpected": unexpected == 0,
        "every_kind_of_known_answer": all(traffic.outcomes[f"known answer{kind}"] for kind in ("", " after a swap")),
        "same_answers_afterwards": [answer.json()["choices"][0]["text"] for answer in last_answers]
        == [canary.text for canary in canaries],
        "nothing_runs_or_waits": not after["num_requests_running"] and not after["num_requests_waiting"],
        "kv_cache_empty": after["kv_cache_usage_perc"] == 0,
        "no_engine_restart": after["engine_restarts_total"] == 0,
        "ready": is_ready,
        "memory_flat": sampler.growth("rss_mib") <= MAX_RSS_GROWTH,
        "open_files_flat": sampler.growth("num_open_files") <= 0.5,
    }
    return {
        "checks": checks,
        "num_requests": traffic.outcomes.total(),
        "num_known_prompts": len(canaries),
        "outcomes": dict(sorted(traffic.outcomes.items())),
        "totals": {name: after[f"{name}_total"] for name in TOTALS},
        "rss_growth": round(sampler.growth("rss_mib"), 4),
        "series": {key: [sample[key] for sample in sampler.series] for key in sampler.series[0]},
    }


def main() -> None:
    """Run, print, and keep the record; status 1 where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="duration of the load (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random traffic (default 0)")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    machine = describe()  # first of all: the checkout may move on while the server runs
    with tempfile.TemporaryDirectory() as folder:
        contents = write_contents(Path(folder))
        log_path = Path(folder) / "server.log"
        server = start_server(Path(folder) / "store", *FLAGS, "--log-level", "warning", log_path=log_path)
        try:
            server.wait_until_ready()
            figures = asyncio.run(soak(server, contents, args.minutes, args.seed))
        finally:
            server.close()
        print(log_path.read_text()[-4000:], file=sys.stderr)
    job = {
        "model": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "minutes": args.minutes,
        "seed": args.seed,
        "num_workers": NUM_WORKERS,
        "server_flags": " ".join(FLAGS),
    }
    write_result("soak", {"benchmark": "soak", "machine": machine, "job": job, **figures})
    failed = [name for name, is_held in figures["checks"].items() if not is_held]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
