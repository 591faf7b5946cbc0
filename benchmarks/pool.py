"""What does swapping cost, with far more sets stored than fit into memory? And does memory stay flat?

Question: output tokens/s of requests that choose among 1,000 stored sets at random, with room for 32 in the pool, over
that of the same requests with one set; and the server's resident memory over 10,000 swaps (`--swaps`).
Baseline: one set, on the same server, in pairs (one, many; many, one; …), every job with prompts of its own.
Ceiling: 1.0, the throughput with one set; for memory, no growth once the pool is full.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import describe, machine_lock
from benchmarks.server_process import ServerProcess, start_server, write_random_set
from benchmarks.streaming import completion_body, random_prompts, stream_completion
from reft_interventions.file_format import load
from reft_interventions.store import InterventionStore

NUM_STORED, NUM_RESIDENT = 1000, 32
NUM_REQUESTS, CONCURRENCY = 96, 32
NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 64, 32
SWAP_CONCURRENCY, SWAPS_PER_SAMPLE = 16, 500
WARM_UP_SWAPS = 1000
"""After so many, every buffer of the server has had its largest size."""


def fill_store(folder: Path) -> tuple[list[str], int]:
    """Store the sets without a server; their names, and the bytes of one set when it is folded."""
    store = InterventionStore(folder)
    names, num_bytes = [], 0
    for seed in range(NUM_STORED):
        path = store.new_temp_path()
        write_random_set(path, seed)
        one = load(path)
        names.append(f"set-{seed}")
        num_bytes = one.fold().num_bytes
        store.put(path, names[-1], one)
    store.close()
    return names, num_bytes


async def run_job(url: str, bodies: Sequence[dict[str, Any]], concurrency: int) -> float:
    """Seconds of all requests, so many at a time: loads happen beside running steps."""
    limits = httpx.Limits(max_connections=concurrency)
    free = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def run_one(body: dict[str, Any]) -> None:
            async with free:
                await stream_completion(client, body)

        started = time.perf_counter()
        await asyncio.gather(*(run_one(body) for body in bodies))
        return time.perf_counter() - started


def make_bodies(names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    chooser = random.Random(seed)
    prompts = random_prompts(seed, NUM_REQUESTS, NUM_PROMPT_TOKENS)
    return [completion_body(prompt, NUM_NEW_TOKENS, intervention=chooser.choice(names)) for prompt in prompts]


def measure_throughput(url: str, names: list[str], rounds: int, lock: Path | None) -> dict[str, Any]:
    """Paired rounds of one set against all of them; output tokens per second."""
    rates: dict[str, list[float]] = {"one_set": [], "all_sets": []}
    num_loads: list[float] = []
    for index in range(rounds + 1):  # the first round warms up
        jobs = [("one_set", names[:1]), ("all_sets", names)]
        with machine_lock(lock, is_exclusive=True):
            for turn, (label, chosen) in enumerate(jobs if index % 2 else jobs[::-1]):
                loads_before = count_loads(url)
                seconds = asyncio.run(run_job(url, make_bodies(chosen, 2 * index + turn), CONCURRENCY))
                rate, loads = NUM_REQUESTS * NUM_NEW_TOKENS / seconds, count_loads(url) - loads_before
                print(f"round {index} {label}: {rate:.1f} tok/s, {loads:.0f} loads", flush=True)
                if index:
                    rates[label].append(rate)
                if index and label == "all_sets":
                    num_loads.append(loads)
    return {
        "tokens_per_s": {label: spread(values, 1) for label, values in rates.items()},
        "all_over_one": ratios(rates["all_sets"], rates["one_set"]),
        "loads_of_all_sets": spread(num_loads, 0),
    }


def count_loads(url: str) -> float:
    """Sets that the server has loaded from its store since it started."""
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("reft:intervention_pool_misses_total "):
            return float(line.split()[1])
    raise RuntimeError("the server does not count its loads")


def measure_memory(server: ServerProcess, names: list[str], num_swaps: int, lock: Path | None) -> dict[str, Any]:
    """Resident memory after every few hundred swaps: requests for one token, each with a set at random."""
    chooser = random.Random(0)
    [prompt] = random_prompts(0, 1, 8)
    samples = [(0, rss_mib(server.pid))]
    while samples[-1][0] < num_swaps:
        bodies = [completion_body(prompt, 1, intervention=chooser.choice(names)) for _ in range(SWAPS_PER_SAMPLE)]
        with machine_lock(lock, is_exclusive=False):
            asyncio.run(run_job(server.url, bodies, SWAP_CONCURRENCY))
        samples.append((samples[-1][0] + SWAPS_PER_SAMPLE, rss_mib(server.pid)))
        print(f"{samples[-1][0]} swaps: {samples[-1][1]:.1f} MiB", flush=True)
    warm = [rss for swaps, rss in samples if swaps >= WARM_UP_SWAPS]
    return {
        "rss_mib": [{"swaps": swaps, "rss": rss} for swaps, rss in samples],
        "growth_mib": round(warm[-1] - warm[0], 1),
        "growth_from_swap": WARM_UP_SWAPS,
    }


def rss_mib(pid: int) -> float:
    """Resident memory of a process, MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 1)
    raise RuntimeError(f"process {pid} has no resident memory")


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--swaps", type=int, help="record memory over so many swaps instead, such as 10000")
    parser.add_argument("--lock", type=Path, help="file to lock while a round runs, on a shared machine")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        with machine_lock(args.lock, is_exclusive=False):
            names, num_bytes = fill_store(store)
        budget = NUM_RESIDENT * num_bytes * 5 // 4  # a fifth of the pool is kept for scaled copies
        flags = ["--intervention-pool-bytes", str(budget), "--log-level", "warning"]
        if args.swaps:
            flags += ["--engine-prefix-cache-scope", "off"]  # its blocks may take 1 GiB of their own
        server = start_server(store, *flags)
        try:
            server.wait_until_ready()
            if args.swaps:
                figures = measure_memory(server, names, args.swaps, args.lock)
            else:
                figures = measure_throughput(server.url, names, args.rounds, args.lock)
        finally:
            server.close()
    job = {
        "model": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "sets": "LoReFT r4, f3+l3, five layers",
        "num_stored": NUM_STORED,
        "num_resident": NUM_RESIDENT,
        "set_bytes": num_bytes,
    }
    if not args.swaps:
        job |= {"num_requests": NUM_REQUESTS, "concurrency": CONCURRENCY, "rounds": args.rounds}
        job |= {"num_prompt_tokens": NUM_PROMPT_TOKENS, "num_new_tokens": NUM_NEW_TOKENS}
    result = {"benchmark": "pool", "machine": describe(), "job": job, **figures}
    write_result("pool-rss" if args.swaps else "pool", result)


if __name__ == "__main__":
    main()
