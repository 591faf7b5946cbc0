"""What does swapping cost, with far more sets stored than fit into memory? And does memory stay flat?

Question: output tokens/s of requests that choose among 1,000 stored sets, as tenants do (Zipf: the n-th most popular
set with a weight of 1/n) and uniformly, with room for 32 in the pool, over that of the same requests with one set; and
the server's resident memory over 10,000 swaps (`--swaps`).
Baseline: one set, on the same server, in turns (one, zipf, uniform; uniform, zipf, one; …), every job with prompts of
its own.
Ceiling: 1.0, the throughput with one set; for memory, no growth once the pool is full.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.adapter_files import write_random_set
from benchmarks.figures import ratios, spread
from benchmarks.options import Options, make_options, make_parser
from benchmarks.server_process import ServerProcess, start_server
from benchmarks.streaming import completion_body, random_prompts, stream_completion
from reft_interventions.file_format import load
from reft_interventions.store import InterventionStore


@dataclass(frozen=True)
class Job:
    """Requests, so many at a time, and how many sets are stored and fit into memory."""

    num_stored: int
    num_resident: int
    num_requests: int
    concurrency: int
    num_prompt_tokens: int
    num_new_tokens: int


FULL = Job(1000, 32, 96, 32, 64, 32)
QUICK = Job(20, 4, 12, 4, 8, 4)
CHOICES = ("one_set", "zipf", "uniform")
DEFAULT_ROUNDS = 3
SWAP_CONCURRENCY, SWAPS_PER_SAMPLE = 16, 500
WARM_UP_SWAPS = 1000
"""After so many, every buffer of the server has had its largest size."""


def fill_store(folder: Path, options: Options, num_sets: int) -> tuple[list[str], int]:
    """Store the sets without a server; their names, and the bytes of one set when it is folded."""
    store = InterventionStore(folder)
    names, num_bytes = [], 0
    for seed in range(num_sets):
        path = store.new_temp_path()
        write_random_set(path, seed, model=options.model)
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


def make_bodies(names: Sequence[str], choice: str, options: Options, job: Job, seed: int) -> list[dict[str, Any]]:
    """The requests of a job, each with a set of its choice."""
    weights = {
        "one_set": [1.0] + [0.0] * (len(names) - 1),
        "zipf": [1 / rank for rank in range(1, len(names) + 1)],
        "uniform": [1.0] * len(names),
    }
    chosen = random.Random(seed).choices(names, weights[choice], k=job.num_requests)
    prompts = random_prompts(seed, job.num_requests, job.num_prompt_tokens, options.model.token_ids)
    return [
        completion_body(prompt, job.num_new_tokens, intervention=name)
        for prompt, name in zip(prompts, chosen, strict=True)
    ]


def measure_throughput(url: str, names: list[str], options: Options, job: Job) -> dict[str, Any]:
    """Paired rounds of one set against all of them; output tokens per second."""
    rates: dict[str, list[float]] = {choice: [] for choice in CHOICES}
    num_loads: dict[str, list[float]] = {choice: [] for choice in CHOICES}
    for index in range(options.num_rounds(DEFAULT_ROUNDS) + 1):  # the first round warms up
        with options.hold_machine(is_exclusive=True):
            options.check_quiet()
            for turn, choice in enumerate(CHOICES if index % 2 else CHOICES[::-1]):
                loads_before = count_loads(url)
                bodies = make_bodies(names, choice, options, job, 10 * index + turn)
                seconds = asyncio.run(run_job(url, bodies, job.concurrency))
                rate, loads = job.num_requests * job.num_new_tokens / seconds, count_loads(url) - loads_before
                print(f"  round {index}, {choice}: {rate:.1f} tok/s, {loads:.0f} loads", flush=True)
                if index:
                    rates[choice].append(rate)
                    num_loads[choice].append(loads)
    return {
        "tokens_per_s": {choice: spread(values, 1) for choice, values in rates.items()},
        "over_one_set": {choice: ratios(rates[choice], rates["one_set"]) for choice in CHOICES[1:]},
        "num_loads": {choice: spread(num_loads[choice], 0) for choice in CHOICES[1:]},
    }


def count_loads(url: str) -> float:
    """Sets that the server has loaded from its store since it started."""
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("reft:intervention_pool_misses_total "):
            return float(line.split()[1])
    raise RuntimeError("the server does not count its loads")


def measure_memory(server: ServerProcess, names: list[str], num_swaps: int, options: Options) -> dict[str, Any]:
    """Resident memory after every few hundred swaps: requests for one token, each with a set at random."""
    chooser = random.Random(0)
    [prompt] = random_prompts(0, 1, 8, options.model.token_ids)
    samples = [(0, rss_mib(server.pid))]
    while samples[-1][0] < num_swaps:
        bodies = [completion_body(prompt, 1, intervention=chooser.choice(names)) for _ in range(SWAPS_PER_SAMPLE)]
        with options.hold_machine(is_exclusive=False):
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


def run(options: Options, num_swaps: int | None = None) -> dict[str, Any]:
    """Measure throughput, or memory over so many swaps; keep the figures; the result."""
    job = QUICK if options.is_quick else FULL
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        with options.hold_machine(is_exclusive=False):
            names, num_bytes = fill_store(store, options, job.num_stored)
        # A fifth of the pool is kept for scaled copies; a tiny model's sets all fit into the least that is allowed.
        budget = max(1 << 20, job.num_resident * num_bytes * 5 // 4)
        flags = [*options.server_flags, "--intervention-pool-bytes", str(budget), "--log-level", "warning"]
        if num_swaps:
            flags += ["--engine-prefix-cache-scope", "off"]  # its blocks may take 1 GiB of their own
        server = start_server(store, *flags)
        try:
            server.wait_until_ready()
            if num_swaps:
                figures = measure_memory(server, names, num_swaps, options)
            else:
                figures = measure_throughput(server.url, names, options, job)
        finally:
            server.close()
    description = {"sets": "LoReFT r4, f3+l3, five layers", "set_bytes": num_bytes, **asdict(job)}
    if not num_swaps:
        description["rounds"] = options.num_rounds(DEFAULT_ROUNDS)
    return options.keep("pool-rss" if num_swaps else "pool", description, figures)


def main() -> None:
    """Run, print, and keep the figures."""
    parser = make_parser(__doc__)
    parser.add_argument("--swaps", type=int, help="record memory over so many swaps instead, such as 10000")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    run(make_options(args), args.swaps)


if __name__ == "__main__":
    main()
