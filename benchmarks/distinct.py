"""What do interventions cost, over the number of distinct ones in a batch?

Question: output tokens/s with K distinct sets mixed, over that of the base model in the same round.
Baseline: the same number of requests on the bare base, on the same server. Every job has random prompts of its own, so
that nothing is reused; the order of the jobs turns round with every round.
Ceiling: 1.0, the base's own throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.distinct_plot import write_plot
from benchmarks.figures import ratios, write_result
from benchmarks.machine import describe, machine_lock, median
from benchmarks.server_process import running_server, upload_random_sets
from benchmarks.streaming import completion_body, random_prompts, stream_all

PREFIXES = {"f3+l3": "prompt", "all": "all"}
"""Positions, and how the names of the sets with them begin."""
BASE = ("base", 0)


@dataclass(frozen=True)
class Series:
    """Jobs of equal size: the base, and positions with a number of distinct sets."""

    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int
    mixes: tuple[tuple[str, int], ...]


SERIES = (
    Series(64, 64, 64, (("f3+l3", 1), ("f3+l3", 8), ("f3+l3", 64), ("all", 1), ("all", 8), ("all", 64))),
    # So many sequences at once fit into memory and time only when they are short; more of their tokens are edited.
    Series(512, 32, 16, (("f3+l3", 512),)),
)


def measure(url: str, series: Series, rounds: int, lock: Path | None) -> dict[str, Any]:
    """Paired rounds of one series."""
    jobs = (BASE, *series.mixes)
    seconds: dict[tuple[str, int], list[float]] = {job: [] for job in jobs}
    num_output = series.num_requests * series.num_new_tokens
    for index in range(rounds + 1):
        is_warm_up = index == 0
        with machine_lock(lock, is_exclusive=True):
            for turn, job in enumerate(jobs[-1:] if is_warm_up else jobs[:: 1 if index % 2 else -1]):
                taken = job_s(url, series, *job, seed=1000 * index + turn)
                print(f"round {index} {job[0]} K={job[1]}: {num_output / taken:.1f} tok/s", flush=True)
                if not is_warm_up:
                    seconds[job].append(taken)
    return {
        "num_requests": series.num_requests,
        "num_prompt_tokens": series.num_prompt_tokens,
        "num_new_tokens": series.num_new_tokens,
        "base_tokens_per_s": round(median([num_output / taken for taken in seconds[BASE]]), 1),
        "over_base": [
            {"positions": job[0], "num_distinct": job[1], **ratios(seconds[BASE], seconds[job])} for job in series.mixes
        ],
    }


def job_s(url: str, series: Series, positions: str, num_distinct: int, seed: int) -> float:
    """Seconds of all requests at once, the n-th under the n-th of the sets."""
    bodies = []
    for index, prompt in enumerate(random_prompts(seed, series.num_requests, series.num_prompt_tokens)):
        name = f"{PREFIXES[positions]}-{index % num_distinct}" if num_distinct else None
        bodies.append(completion_body(prompt, series.num_new_tokens, intervention=name))
    return asyncio.run(stream_all(url, bodies))[0]


def upload_sets(url: str, folder: Path) -> None:
    """As many sets of each kind as some job mixes."""
    mixes = [mix for series in SERIES for mix in series.mixes]
    for positions, prefix in PREFIXES.items():
        num_sets = max(k for kind, k in mixes if kind == positions)
        asyncio.run(upload_random_sets(url, folder, num_sets, positions=positions, prefix=prefix))


def main() -> None:
    """Run, print, and keep the figures and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--lock", type=Path, help="file to lock while a round runs, on a shared machine")
    args = parser.parse_args()
    flags = ("--engine-max-num-seqs", "512", "--engine-max-queue-len", "512", "--log-level", "warning")
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "store", *flags) as url:
        with machine_lock(args.lock, is_exclusive=False):
            upload_sets(url, Path(folder))
        result = {
            "benchmark": "distinct",
            "machine": describe(),
            "job": {"model": "SmolLM2-135M-Instruct", "dtype": "float32", "sets": "LoReFT r4, five layers"},
            "rounds": args.rounds,
            "series": [measure(url, series, args.rounds, args.lock) for series in SERIES],
        }
    write_result("distinct", result)
    write_plot(result)


if __name__ == "__main__":
    main()
