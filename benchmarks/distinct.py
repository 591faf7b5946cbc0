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


@dataclass(frozen=True)
class Series:
    """Jobs of equal size, one for each number of distinct sets; 0 is the base."""

    positions: str
    num_distinct: tuple[int, ...]
    num_requests: int
    num_prompt_tokens: int
    num_new_tokens: int


PROMPT_ONLY, ALL = "f3+l3", "all"
SERIES = (
    Series(PROMPT_ONLY, (0, 1, 8, 64), num_requests=64, num_prompt_tokens=64, num_new_tokens=64),
    Series(ALL, (0, 1, 8, 64), num_requests=64, num_prompt_tokens=64, num_new_tokens=64),
    Series(PROMPT_ONLY, (0, 512), num_requests=512, num_prompt_tokens=32, num_new_tokens=16),
)
"""512 sequences fit into memory and time with short requests only; the share of edited tokens is larger there."""


def measure(url: str, names: dict[str, list[str]], series: Series, rounds: int, lock: Path | None) -> dict[str, Any]:
    """Paired rounds of one series."""
    seconds: dict[int, list[float]] = {k: [] for k in series.num_distinct}
    num_output = series.num_requests * series.num_new_tokens
    for index in range(rounds + 1):  # the first round warms up
        order = series.num_distinct if index % 2 else series.num_distinct[::-1]
        with machine_lock(lock, is_exclusive=True):
            for k in order:
                taken = job_s(url, series, names[series.positions][:k], seed=1000 * index + k)
                print(f"round {index} {series.positions} K={k}: {num_output / taken:.1f} tok/s", flush=True)
                if index:
                    seconds[k].append(taken)
    return {
        "positions": series.positions,
        "num_requests": series.num_requests,
        "num_prompt_tokens": series.num_prompt_tokens,
        "num_new_tokens": series.num_new_tokens,
        "base_tokens_per_s": round(median([num_output / taken for taken in seconds[0]]), 1),
        "over_base": {str(k): ratios(seconds[0], taken) for k, taken in seconds.items() if k},
    }


def job_s(url: str, series: Series, names: list[str], seed: int) -> float:
    """Seconds of all requests at once, the n-th under the n-th of the sets."""
    prompts = random_prompts(seed, series.num_requests, series.num_prompt_tokens)
    bodies = [
        completion_body(prompt, series.num_new_tokens, intervention=names[i % len(names)] if names else None)
        for i, prompt in enumerate(prompts)
    ]
    return asyncio.run(stream_all(url, bodies))[0]


def main() -> None:
    """Run, print, and keep the figures and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--lock", type=Path, help="file to lock while a round runs, on a shared machine")
    args = parser.parse_args()
    flags = ("--engine-max-num-seqs", "512", "--engine-max-queue-len", "512", "--log-level", "warning")
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "store", *flags) as url:
        names: dict[str, list[str]] = {}
        for positions in (PROMPT_ONLY, ALL):
            num_sets = max(max(series.num_distinct) for series in SERIES if series.positions == positions)
            prefix = "all" if positions == ALL else "prompt"
            upload = upload_random_sets(url, Path(folder), num_sets, positions=positions, prefix=prefix)
            with machine_lock(args.lock, is_exclusive=False):
                names[positions] = asyncio.run(upload)
        result = {
            "benchmark": "distinct",
            "machine": describe(),
            "job": {"model": "SmolLM2-135M-Instruct", "dtype": "float32", "sets": "LoReFT r4, five layers"},
            "rounds": args.rounds,
            "series": [measure(url, names, series, args.rounds, args.lock) for series in SERIES],
        }
    write_result("distinct", result)
    write_plot(result)


if __name__ == "__main__":
    main()
