"""Does serving over HTTP keep up with HF `generate`, and what do mixed interventions cost?

Question: output tokens/s of 32 requests of 128 + 64 tokens at concurrency 32, greedy, streamed over HTTP.
Baseline: HF `generate` on the same prompts as one static batch, in a process of its own. Rounds are paired
(generate, base, mixed; generate, base, mixed; …) and ratios are taken within a round; every job has prompts of its own.
Ceiling: weights only, at the machine's measured matrix product and memory read rates.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.figures import ratios, write_result
from benchmarks.hf_worker import HFGenerate
from benchmarks.machine import ceilings, describe, job_ceiling, median
from benchmarks.server_process import running_server, upload_random_sets
from benchmarks.streaming import completion_body, random_prompts, stream_all
from reft_server.base_model import default_model_path

NUM_PROMPT_TOKENS, NUM_NEW_TOKENS, NUM_SETS = 128, 64, 8


def job_description(batch: int, rounds: int) -> dict[str, Any]:
    """What every contender runs."""
    return {
        "model": "SmolLM2-135M-Instruct",
        "dtype": "float32",
        "num_requests": batch,
        "num_prompt_tokens": NUM_PROMPT_TOKENS,
        "num_new_tokens": NUM_NEW_TOKENS,
        "num_sets": NUM_SETS,
        "sets": "LoReFT r4, f3+l3, five layers",
        "stream": True,
        "rounds": rounds,
    }


def serve_s(url: str, prompts: list[list[int]], names: list[str | None]) -> float:
    """Seconds of all prompts at once, the n-th under the n-th intervention."""
    bodies = [
        completion_body(prompt, NUM_NEW_TOKENS, intervention=name) for prompt, name in zip(prompts, names, strict=True)
    ]
    return asyncio.run(stream_all(url, bodies))[0]


def measure(batch: int, rounds: int) -> dict[str, Any]:
    """Paired rounds; every figure is output tokens per second of the whole job."""
    rates: dict[str, list[float]] = {"hf_generate": [], "server_base": [], "server_mixed": []}
    num_output = batch * NUM_NEW_TOKENS
    hf = HFGenerate(default_model_path())
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "store") as url:
        names = asyncio.run(upload_random_sets(url, Path(folder), NUM_SETS))
        base: list[str | None] = [None] * batch
        mixed: list[str | None] = [names[i % NUM_SETS] for i in range(batch)]
        for index in range(rounds + 1):  # the first round warms up
            first, second, third = (random_prompts(3 * index + i, batch, NUM_PROMPT_TOKENS) for i in range(3))
            seconds = {
                "hf_generate": hf.generate_s(first, NUM_NEW_TOKENS),
                "server_base": serve_s(url, second, base),
                "server_mixed": serve_s(url, third, mixed),
            }
            line = "  ".join(f"{name} {num_output / value:.1f}" for name, value in seconds.items())
            print(f"round {index}{' (warm-up)' if index == 0 else ''}: {line} tok/s", flush=True)
            if index:
                for name, value in seconds.items():
                    rates[name].append(num_output / value)
    hf.close()
    return {
        "tokens_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "base_over_hf": ratios(rates["server_base"], rates["hf_generate"]),
        "mixed_over_base": ratios(rates["server_mixed"], rates["server_base"]),
    }


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="concurrent requests (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    args = parser.parse_args()
    peak = ceilings()
    ceiling = job_ceiling(peak, args.batch, NUM_PROMPT_TOKENS, NUM_NEW_TOKENS)
    print(f"ceiling: {peak}, so at most {ceiling:.0f} output tok/s of this job", flush=True)
    result = {
        "benchmark": "serve",
        "machine": describe(),
        "ceilings": {**peak, "tokens_per_s": round(ceiling, 1)},
        "job": job_description(args.batch, args.rounds),
        **measure(args.batch, args.rounds),
    }
    write_result(f"serve-batch{args.batch}", result)


if __name__ == "__main__":
    main()
