"""What does sharing a prompt's prefix across interventions win?

Question: time to the first token of 64 requests sent at once, 16 different `l1` interventions in turn, one shared
system prompt of 1,024 tokens and 8 tokens of their own, 32 new tokens, streamed over HTTP.
Baseline: the same with reuse limited to requests of one intervention, as servers do that hash the adapter into every
block from the first on. Each round takes a system prompt that no server has seen. Rounds are paired (limited, shared,
warm; limited, shared, warm; …) and ratios are taken within a round; `warm` is `shared` after base traffic has sent the
system prompt once.
Ceiling: the tokens that must be computed, at the machine's measured matrix product rate.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import ceilings, describe, machine_lock, prefill_floor_s
from benchmarks.server_process import ServerProcess, start_server, upload_random_sets
from benchmarks.streaming import Answer, completion_body, random_prompts, stream_all

NUM_REQUESTS, NUM_SETS = 64, 16
NUM_SYSTEM_TOKENS, NUM_USER_TOKENS, NUM_NEW_TOKENS = 1024, 8, 32
FLAGS = ("--engine-max-num-seqs", str(NUM_REQUESTS), "--engine-kv-cache-bytes", "6GiB")
SCOPES = {"limited": "intervention", "shared": "shared", "warm": "shared"}
"""Variant to the server's `prefix_cache_scope`."""


def run_job(url: str, names: list[str], seed: int, *, is_warm: bool) -> list[Answer]:
    """All requests at once, after one base request with the system prompt where `is_warm`."""
    system = random_prompts(seed, 1, NUM_SYSTEM_TOKENS)[0]
    users = random_prompts(seed + 1, NUM_REQUESTS, NUM_USER_TOKENS)
    if is_warm:
        asyncio.run(stream_all(url, [completion_body(system + users[0], 1)]))
    bodies = [
        completion_body(system + user, NUM_NEW_TOKENS, intervention=names[index % NUM_SETS])
        for index, user in enumerate(users)
    ]
    return asyncio.run(stream_all(url, bodies))[1]


def measure(servers: dict[str, ServerProcess], names: list[str], rounds: int) -> dict[str, Any]:
    """Paired rounds; seconds, of the mean and of the median request."""
    means: dict[str, list[float]] = {variant: [] for variant in SCOPES}
    medians: dict[str, list[float]] = {variant: [] for variant in SCOPES}
    for index in range(rounds):
        for turn, (variant, scope) in enumerate(SCOPES.items()):
            server = servers[scope]
            server.resume()
            asyncio.run(stream_all(server.url, [completion_body(random_prompts(turn, 1, 8)[0], 2)]))
            answers = run_job(server.url, names, 1000 * (index * len(SCOPES) + turn), is_warm=variant == "warm")
            server.pause()
            seconds = [answer.first_token_s for answer in answers]
            means[variant].append(statistics.mean(seconds))
            medians[variant].append(statistics.median(seconds))
            print(
                f"round {index + 1}: {variant}: mean {means[variant][-1]:.2f} s, last {max(seconds):.2f} s", flush=True
            )
    return {
        "mean_ttft_s": {variant: spread(values) for variant, values in means.items()},
        "median_ttft_s": {variant: spread(values) for variant, values in medians.items()},
        "limited_over_shared": ratios(means["limited"], means["shared"]),
        "limited_over_warm": ratios(means["limited"], means["warm"]),
    }


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--lock", type=Path, help="flock this file: shared to start servers, exclusive to measure")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with us
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        servers = {}
        with machine_lock(args.lock, is_exclusive=False):
            for scope in ("intervention", "shared"):
                server = start_server(Path(folder) / scope, *FLAGS, "--engine-prefix-cache-scope", scope)
                stack.callback(server.close)
                server.wait_until_ready()
                names = asyncio.run(upload_random_sets(server.url, Path(folder), NUM_SETS, positions="l1"))
                server.pause()
                servers[scope] = server
        with machine_lock(args.lock, is_exclusive=True):
            peak = ceilings()
            least_s = {
                "limited": round(prefill_floor_s(peak, NUM_SETS * NUM_SYSTEM_TOKENS), 2),
                "shared": round(prefill_floor_s(peak, NUM_SYSTEM_TOKENS), 2),
            }
            print(f"ceiling: {peak}, so the system prompts alone take {least_s} s", flush=True)
            figures = measure(servers, names, args.rounds)
        result = {
            "benchmark": "prefix",
            "machine": describe(),
            "ceilings": {**peak, "system_prompts_s": least_s},
            "job": {
                "model": "SmolLM2-135M-Instruct",
                "dtype": "float32",
                "num_requests": NUM_REQUESTS,
                "num_system_tokens": NUM_SYSTEM_TOKENS,
                "num_user_tokens": NUM_USER_TOKENS,
                "num_new_tokens": NUM_NEW_TOKENS,
                "num_sets": NUM_SETS,
                "sets": "LoReFT r4, l1, five layers",
                "server_flags": " ".join(FLAGS),
                "rounds": args.rounds,
            },
            **figures,
        }
    write_result("prefix", result)


if __name__ == "__main__":
    main()
