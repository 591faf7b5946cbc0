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

import asyncio
import signal
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.adapter_files import upload_random_sets
from benchmarks.figures import ratios, spread
from benchmarks.machine import ceilings, prefill_floor_s
from benchmarks.options import Options, parse_options
from benchmarks.server_process import ServerProcess, start_server
from benchmarks.streaming import Answer, completion_body, random_prompts, stream_all


@dataclass(frozen=True)
class Job:
    """Requests at once that share a system prompt."""

    num_requests: int
    num_sets: int
    num_system_tokens: int
    num_user_tokens: int
    num_new_tokens: int


FULL = Job(num_requests=64, num_sets=16, num_system_tokens=1024, num_user_tokens=8, num_new_tokens=32)
QUICK = Job(num_requests=4, num_sets=2, num_system_tokens=64, num_user_tokens=4, num_new_tokens=4)
FLAGS = ("--engine-max-num-seqs", str(FULL.num_requests), "--engine-kv-cache-bytes", "6GiB", "--log-level", "warning")
DEFAULT_ROUNDS = 3
SCOPES = {"limited": "intervention", "shared": "shared", "warm": "shared"}
"""Variant to the server's `prefix_cache_scope`."""


def run_job(url: str, names: list[str], options: Options, job: Job, seed: int, *, is_warm: bool) -> list[Answer]:
    """All requests at once, after one base request with the system prompt where `is_warm`."""
    token_ids = options.model.token_ids
    system = random_prompts(seed, 1, job.num_system_tokens, token_ids)[0]
    users = random_prompts(seed + 1, job.num_requests, job.num_user_tokens, token_ids)
    if is_warm:
        asyncio.run(stream_all(url, [completion_body(system + users[0], 1)]))
    bodies = [
        completion_body(system + user, job.num_new_tokens, intervention=names[index % job.num_sets])
        for index, user in enumerate(users)
    ]
    return asyncio.run(stream_all(url, bodies))[1]


def measure(servers: dict[str, ServerProcess], names: list[str], options: Options, job: Job) -> dict[str, Any]:
    """Paired rounds; seconds, of the mean and of the median request."""
    means: dict[str, list[float]] = {variant: [] for variant in SCOPES}
    medians: dict[str, list[float]] = {variant: [] for variant in SCOPES}
    rounds = options.num_rounds(DEFAULT_ROUNDS)
    for index in range(rounds):
        for turn, (variant, scope) in enumerate(SCOPES.items()):
            server = servers[scope]
            server.resume()
            awake = completion_body(random_prompts(turn, 1, 8, options.model.token_ids)[0], 2)
            asyncio.run(stream_all(server.url, [awake]))
            seed = 1000 * (index * len(SCOPES) + turn)
            answers = run_job(server.url, names, options, job, seed, is_warm=variant == "warm")
            server.pause()
            seconds = [answer.first_token_s for answer in answers]
            means[variant].append(statistics.mean(seconds))
            medians[variant].append(statistics.median(seconds))
            line = f"mean {means[variant][-1]:.2f} s, last {max(seconds):.2f} s"
            print(f"  round {index + 1} of {rounds}, {variant}: {line}", flush=True)
    return {
        "mean_ttft_s": {variant: spread(values) for variant, values in means.items()},
        "median_ttft_s": {variant: spread(values) for variant, values in medians.items()},
        "limited_over_shared": ratios(means["limited"], means["shared"]),
        "limited_over_warm": ratios(means["limited"], means["warm"]),
    }


def start_servers(
    options: Options, job: Job, folder: Path, stack: ExitStack
) -> tuple[dict[str, ServerProcess], list[str]]:
    """A stopped server for each scope, and the names of the sets that both have."""
    servers, names = {}, []
    for scope in ("intervention", "shared"):
        flags = (*options.server_flags, *FLAGS, "--engine-prefix-cache-scope", scope)
        server = start_server(folder / scope, *flags)
        stack.callback(server.close)
        server.wait_until_ready()
        names = asyncio.run(upload_random_sets(server.url, folder, job.num_sets, positions="l1", model=options.model))
        server.pause()
        servers[scope] = server
    return servers, names


def run(options: Options) -> dict[str, Any]:
    """Measure, and keep the figures; the result."""
    job = QUICK if options.is_quick else FULL
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with options.hold_machine(is_exclusive=False):
            servers, names = start_servers(options, job, Path(folder), stack)
        with options.hold_machine(is_exclusive=True):
            options.check_quiet()
            peak = ceilings(is_quick=options.is_quick)
            weights = options.model.num_block_weights
            least_s = {
                "limited": round(prefill_floor_s(peak, job.num_sets * job.num_system_tokens, weights), 2),
                "shared": round(prefill_floor_s(peak, job.num_system_tokens, weights), 2),
            }
            print(f"ceiling: {peak}, so the system prompts alone take {least_s} s", flush=True)
            figures = measure(servers, names, options, job)
    description = {
        **asdict(job),
        "sets": "LoReFT r4, l1, five layers",
        "server_flags": " ".join(FLAGS),
        "rounds": options.num_rounds(DEFAULT_ROUNDS),
    }
    return options.keep("prefix", description, {"ceilings": {**peak, "system_prompts_s": least_s}, **figures})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with us
    run(parse_options(__doc__))
