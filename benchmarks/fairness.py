"""Can a tenant who floods the server make another one wait?

Question: time to the first token of a light tenant's requests (one at a time, 256 + 16 tokens), while another tenant
keeps 64 requests (128 + 64 tokens) in flight. Tenants are told apart by the request's `user`.
Baseline: the same requests on an idle server. Phases are paired (alone, flooded; alone, flooded; …); the ratio is of
the phases' medians, within a round. Required: at most 1.5.
Ceiling: the light prompt's tokens at the machine's measured matrix product rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import ceilings, describe, machine_lock, median, prefill_floor_s
from benchmarks.server_process import start_server
from benchmarks.streaming import completion_body, random_prompts, stream_completion

NUM_FLOODING, FLOOD_PROMPT_TOKENS, FLOOD_NEW_TOKENS = 64, 128, 64
LIGHT_PROMPT_TOKENS, LIGHT_NEW_TOKENS, THINK_TIME_S = 256, 16, 0.1


async def light_tenant(client: httpx.AsyncClient, seed: int, num_requests: int) -> list[float]:
    """Seconds to the first token of requests sent one after the other."""
    seconds = []
    for prompt in random_prompts(seed, num_requests, LIGHT_PROMPT_TOKENS):
        answer = await stream_completion(client, completion_body(prompt, LIGHT_NEW_TOKENS, user="light"))
        seconds.append(answer.first_token_s)
        await asyncio.sleep(THINK_TIME_S)
    return seconds


@contextlib.asynccontextmanager
async def flood(client: httpx.AsyncClient, seed: int) -> AsyncIterator[None]:
    """Keep requests of another tenant in flight; entered once the first of them is answered."""
    has_answer = asyncio.Event()
    seeds = itertools.count(seed)

    async def keep_sending() -> None:
        while True:
            prompt = random_prompts(next(seeds), 1, FLOOD_PROMPT_TOKENS)[0]
            await stream_completion(client, completion_body(prompt, FLOOD_NEW_TOKENS, user="flood"))
            has_answer.set()

    tasks = [asyncio.create_task(keep_sending()) for _ in range(NUM_FLOODING)]
    first = asyncio.create_task(has_answer.wait())
    try:
        await asyncio.wait([first, *tasks], return_when=asyncio.FIRST_COMPLETED)
        yield
    finally:
        for task in (first, *tasks):
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failed = [error for error in ended if not isinstance(error, asyncio.CancelledError)]
    if failed:
        raise RuntimeError(f"{len(failed)} flooding requests failed, the first with {failed[0]!r}")


async def run_phase(url: str, seed: int, num_requests: int, *, is_flooded: bool) -> list[float]:
    """The light tenant's seconds to the first token, alone or beside the flood."""
    limits = httpx.Limits(max_connections=NUM_FLOODING + 1)
    async with (
        httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client,
        flood(client, 1000 * seed) if is_flooded else contextlib.nullcontext(),
    ):
        return await light_tenant(client, seed, num_requests)


def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Paired phases; seconds."""
    samples: dict[str, list[list[float]]] = {"alone": [], "flooded": []}
    asyncio.run(run_phase(url, 1, 2, is_flooded=False))
    for index in range(1, args.rounds + 1):
        with machine_lock(args.lock, is_exclusive=True):
            for phase, collected in samples.items():
                is_flooded = phase == "flooded"
                seconds = asyncio.run(run_phase(url, 10 * index + is_flooded, args.requests, is_flooded=is_flooded))
                collected.append(seconds)
                print(f"round {index}: {phase}: median {median(collected[-1]):.3f} s", flush=True)
    medians = {phase: [median(seconds) for seconds in rounds] for phase, rounds in samples.items()}
    return {
        "ttft_s": {phase: spread(list(itertools.chain(*rounds))) for phase, rounds in samples.items()},
        "flooded_over_alone": ratios(medians["flooded"], medians["alone"]),
    }


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--requests", type=int, default=16, help="light requests of a phase (default 16)")
    parser.add_argument("--server-flags", default="", help="flags of the server, in one string")
    parser.add_argument("--lock", type=Path, help="flock this file: shared to start the server, exclusive to measure")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    with machine_lock(args.lock, is_exclusive=True):
        peak = ceilings()
    floor_s = prefill_floor_s(peak, LIGHT_PROMPT_TOKENS)
    print(f"ceiling: {peak}, so the light prompt takes at least {floor_s:.3f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(Path(folder) / "store", *args.server_flags.split())
        try:
            with machine_lock(args.lock, is_exclusive=False):
                server.wait_until_ready()
            figures = measure(server.url, args)
        finally:
            server.close()
    result = {
        "benchmark": "fairness",
        "machine": describe(),
        "ceilings": {**peak, "light_prompt_s": round(floor_s, 3)},
        "job": {
            "model": "SmolLM2-135M-Instruct",
            "dtype": "float32",
            "num_flooding_requests": NUM_FLOODING,
            "flood_tokens": [FLOOD_PROMPT_TOKENS, FLOOD_NEW_TOKENS],
            "light_tokens": [LIGHT_PROMPT_TOKENS, LIGHT_NEW_TOKENS],
            "light_requests_per_phase": args.requests,
            "server_flags": args.server_flags,
            "rounds": args.rounds,
        },
        **figures,
    }
    write_result("fairness", result)


if __name__ == "__main__":
    main()
