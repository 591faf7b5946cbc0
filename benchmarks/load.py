"""Does the server keep its tenants apart, and stay whole, while 200 clients stream at once?

Question: minutes of 200 streaming clients of four tenants, 10% of them leaving midway, 5% bad requests, with uploads,
deletes, aliases and routes changing under them. Every tenant has its own sets under the same names. Does any answer
come from another tenant's set (by what it says, by its headers, by its text), is there any 5xx, does every request
have an end, and do memory, open files and asyncio tasks stay what they were?
Baseline: the answers of the same prompts one by one before the load. No ceiling: nothing is timed.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import write_result
from benchmarks.load_tenants import NUM_TENANTS, World, build_world
from benchmarks.load_traffic import BAD, DISCONNECTS, Traffic
from benchmarks.machine import RESULTS, describe
from benchmarks.server_process import ServerProcess, start_server
from benchmarks.soak import MAX_RSS_GROWTH, NUM_SAMPLES, TOTALS, Sampler, drain
from benchmarks.soak_traffic import COMPLETIONS, MAX_UPLOAD_BYTES, canary_body
from reft_server.tenants import SCOPES, TenantDirectory

NUM_CLIENTS = 200
MAX_MORE_TASKS, MAX_MORE_FILES = 3, 3
"""Once idle, over what there was before the load."""
FLAGS = (
    *("--max-upload-bytes", str(MAX_UPLOAD_BYTES)),
    *("--intervention-pool-bytes", "1MiB"),
    *("--engine-kv-cache-bytes", "256MiB"),
    *("--engine-prefix-cache-bytes", "64MiB"),
)


async def load(server: ServerProcess, key: str, folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Load the server; counts by outcome, the series and the verdict."""
    operator = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=NUM_CLIENTS)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client,
        httpx.AsyncClient(base_url=server.url, timeout=300, headers=operator) as watcher,
    ):
        world = await build_world(client, operator, folder)
        print(f"{len(world.answers)} known answers, {world.num_telling()} of them one content's alone", flush=True)
        before = await idle_state(watcher, server)
        traffic = Traffic(client, world)
        sampler = Sampler(watcher, server.pid, 60 * minutes / NUM_SAMPLES)
        sampling = asyncio.create_task(sampler.run())
        await run_clients(traffic, world, 60 * minutes, seed)
        sampling.cancel()
        after = await drain(watcher, timeout_s=120)
        num_changed = await count_changed(client, world)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, headers=operator) as watcher:
        end = await settled_state(watcher, server, before)
        is_ready = (await watcher.get("/ready")).status_code == 200
    unexpected = sum(count for outcome, count in traffic.outcomes.items() if outcome.startswith("unexpected"))
    return {
        "checks": {
            "nothing_unexpected": unexpected == 0,
            "texts_were_checked": traffic.num_checked_texts > 0 and world.num_telling() > 0,
            "everything_happened": len([name for name in traffic.outcomes if name.startswith("changed")]) == 5,
            "same_answers_afterwards": num_changed == 0,
            "nothing_runs_or_waits": not after["num_requests_running"] and not after["num_requests_waiting"],
            "kv_cache_empty": after["kv_cache_usage_perc"] == 0,
            "no_engine_restart": after["engine_restarts_total"] == 0,
            "ready": is_ready,
            "memory_flat": sampler.growth("rss_mib") <= MAX_RSS_GROWTH,
            "no_file_left_open": end["num_open_files"] <= before["num_open_files"] + MAX_MORE_FILES,
            "no_task_left": end["num_tasks"] <= before["num_tasks"] + MAX_MORE_TASKS,
        },
        "num_requests": traffic.outcomes.total(),
        "num_checked_texts": traffic.num_checked_texts,
        "num_known_answers": len(world.answers),
        "num_telling_answers": world.num_telling(),
        "outcomes": dict(sorted(traffic.outcomes.items())),
        "totals": {name: after[f"{name}_total"] for name in TOTALS},
        "idle_before": before,
        "idle_after": end,
        "rss_growth": round(sampler.growth("rss_mib"), 4),
        "series": {name: [sample[name] for sample in sampler.series] for name in sampler.series[0]},
    }


async def run_clients(traffic: Traffic, world: World, seconds: float, seed: int) -> None:
    """All clients, and a changer for each tenant, until the time is over and their requests have ended."""
    deadline = time.monotonic() + seconds

    async def stream(index: int) -> None:
        rng, tenant = random.Random(f"{seed}/{index}"), world.tenants[index % NUM_TENANTS]
        while time.monotonic() < deadline:
            await traffic.act(tenant, rng)

    async def change(index: int) -> None:
        rng = random.Random(f"{seed}/change/{index}")
        while time.monotonic() < deadline:
            await traffic.change(world.tenants[index], rng)

    await asyncio.gather(*map(stream, range(NUM_CLIENTS)), *map(change, range(NUM_TENANTS)))


async def count_changed(client: httpx.AsyncClient, world: World) -> int:
    """Known answers of the base model and of `style` that are others after the load."""
    num_changed = 0
    for tenant in world.tenants:
        for name, content_hash in ((None, ""), ("style", next(iter(tenant.hashes["style"])))):
            for prompt in {prompt for each, prompt in world.answers if each == content_hash}:
                body = canary_body(prompt, name)
                answer = await client.post(COMPLETIONS, json=body, headers=tenant.headers)
                text = answer.raise_for_status().json()["choices"][0]["text"]
                num_changed += text != world.answers[content_hash, prompt]
    return num_changed


async def idle_state(watcher: httpx.AsyncClient, server: ServerProcess) -> dict[str, float]:
    """One sample while nothing is sent."""
    sampler = Sampler(watcher, server.pid, 1)
    await sampler.sample()
    return sampler.series[-1]


async def settled_state(
    watcher: httpx.AsyncClient, server: ServerProcess, before: dict[str, float], timeout_s: float = 30
) -> dict[str, float]:
    """The idle state once connections have closed, or after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        state = await idle_state(watcher, server)
        is_settled = all(state[name] <= before[name] for name in ("num_open_files", "num_tasks"))
        if is_settled or time.monotonic() > deadline:
            return state
        await asyncio.sleep(1)


def main() -> None:
    """Run, print, and keep the record; status 1 where a check failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="duration of the load (default 10)")
    parser.add_argument("--seed", type=int, default=0, help="of the random traffic (default 0)")
    parser.add_argument("--discard", action="store_true", help="keep no record")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    machine = describe()  # first of all: the checkout may move on while the server runs
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        directory = TenantDirectory.of_store(folder / "store")
        directory.open()
        key = directory.create_key("", SCOPES)[1].text
        directory.close()
        log_path = folder / "server.log"
        server = start_server(folder / "store", *FLAGS, "--log-level", "warning", log_path=log_path)
        try:
            server.wait_until_ready()
            figures = asyncio.run(load(server, key, folder, args.minutes, args.seed))
        finally:
            server.close()
            print(log_path.read_text()[-4000:], file=sys.stderr)
    job = {
        "model": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "minutes": args.minutes,
        "seed": args.seed,
        "num_clients": NUM_CLIENTS,
        "num_tenants": NUM_TENANTS,
        "disconnects": DISCONNECTS,
        "bad_requests": BAD,
        "server_flags": " ".join(FLAGS),
    }
    record = {"benchmark": "load", "machine": machine, "job": job, **figures}
    write_result("load", record, None if args.discard else RESULTS)
    failed = [name for name, is_held in figures["checks"].items() if not is_held]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
