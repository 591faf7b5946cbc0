"""Does serving over HTTP keep up with HF `generate`, and what do mixed interventions cost?

Question: output tokens/s of 32 requests of 128 + 64 tokens at concurrency 32, greedy, streamed over HTTP.
Baseline: HF `generate` on the same prompts as one static batch, in a process of its own. Rounds are paired
(generate, base, mixed; generate, base, mixed; …) and ratios are taken within a round.
Ceiling: 2 FLOP per weight and token at the machine's measured matrix product rate.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.machine import RESULTS, ceilings, describe, median
from benchmarks.server_process import running_server, write_random_set
from reft_client import AsyncReftClient
from reft_server.base_model import default_model_path

NUM_PROMPT_TOKENS, NUM_NEW_TOKENS, NUM_SETS = 128, 64, 8
NUM_WEIGHTS = 134_515_008


class HFGenerate:
    """The baseline's process."""

    def __init__(self, model_path: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.hf_worker", str(model_path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, prompts: list[list[int]], max_tokens: int) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


async def run_requests(url: str, prompts: list[list[int]], sets: list[str | None], stream: bool) -> float:
    """Seconds until the last of all concurrent requests has every token."""
    limits = httpx.Limits(max_connections=len(prompts))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        started = time.perf_counter()
        counts = await asyncio.gather(
            *(_one(client, prompt, name, stream) for prompt, name in zip(prompts, sets, strict=True))
        )
        seconds = time.perf_counter() - started
    if counts != [NUM_NEW_TOKENS] * len(prompts):
        raise RuntimeError(f"requests got {sorted(set(counts))} tokens, not {NUM_NEW_TOKENS}")
    return seconds


async def _one(client: httpx.AsyncClient, prompt: list[int], intervention: str | None, stream: bool) -> int:
    body: dict[str, Any] = {
        "prompt": prompt,
        "max_tokens": NUM_NEW_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "intervention": intervention,
        "stream": stream,
    }
    if not stream:
        answer = await client.post("/v1/completions", json=body)
        answer.raise_for_status()
        return int(answer.json()["usage"]["completion_tokens"])
    body["stream_options"] = {"include_usage": True}
    num_tokens = 0
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                usage = json.loads(line[6:]).get("usage")
                num_tokens = usage["completion_tokens"] if usage else num_tokens
    return num_tokens


async def upload_sets(url: str, folder: Path) -> list[str]:
    names = []
    async with AsyncReftClient(url) as client:
        for seed in range(NUM_SETS):
            path = folder / f"set-{seed}.safetensors"
            write_random_set(path, seed)
            names.append(f"set-{seed}")
            await client.interventions.upload(path, names[-1])
    return names


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Paired rounds; every figure is output tokens per second of the whole job."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.batch, NUM_PROMPT_TOKENS)
    prompts: list[list[int]] = torch.randint(100, 49_000, shape, generator=generator).tolist()
    rates: dict[str, list[float]] = {"hf_generate": [], "server_base": [], "server_mixed": []}
    num_output = args.batch * NUM_NEW_TOKENS
    hf = HFGenerate(default_model_path())
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder) / "store") as url:
        names = asyncio.run(upload_sets(url, Path(folder)))
        base: list[str | None] = [None] * args.batch
        mixed: list[str | None] = [names[i % NUM_SETS] for i in range(args.batch)]
        for index in range(args.rounds + 1):  # the first round warms up
            seconds = {
                "hf_generate": hf.run(prompts, NUM_NEW_TOKENS),
                "server_base": asyncio.run(run_requests(url, prompts, base, args.stream)),
                "server_mixed": asyncio.run(run_requests(url, prompts, mixed, args.stream)),
            }
            line = "  ".join(f"{name} {num_output / value:.1f}" for name, value in seconds.items())
            print(f"round {index}{' (warm-up)' if index == 0 else ''}: {line} tok/s", flush=True)
            if index:
                for name, value in seconds.items():
                    rates[name].append(num_output / value)
    hf.close()
    return summarise(rates)


def summarise(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Medians, and the medians of the ratios within rounds with their range."""

    def ratio(above: str, below: str) -> dict[str, float]:
        values = [a / b for a, b in zip(rates[above], rates[below], strict=True)]
        return {"median": round(median(values), 3), "min": round(min(values), 3), "max": round(max(values), 3)}

    return {
        "tokens_per_s": {name: round(median(values), 1) for name, values in rates.items()},
        "base_over_hf": ratio("server_base", "hf_generate"),
        "mixed_over_base": ratio("server_mixed", "server_base"),
    }


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32, help="concurrent requests (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--no-stream", dest="stream", action="store_false", help="answers in one piece")
    args = parser.parse_args()
    peak = ceilings()
    tokens = args.batch * (NUM_PROMPT_TOKENS + NUM_NEW_TOKENS)
    ceiling = args.batch * NUM_NEW_TOKENS / (2 * NUM_WEIGHTS * tokens / (peak["gemm_gflops"] * 1e9))
    print(f"ceiling: {peak}, so at most {ceiling:.0f} output tok/s of this job", flush=True)
    result = {
        "benchmark": "serve",
        "machine": describe(),
        "ceilings": {**peak, "tokens_per_s": round(ceiling, 1)},
        "job": {
            "model": "SmolLM2-135M-Instruct",
            "dtype": "float32",
            "num_requests": args.batch,
            "num_prompt_tokens": NUM_PROMPT_TOKENS,
            "num_new_tokens": NUM_NEW_TOKENS,
            "num_sets": NUM_SETS,
            "sets": "LoReFT r4, f3+l3, five layers",
            "stream": args.stream,
            "rounds": args.rounds,
        },
        **measure(args),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"serve-batch{args.batch}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
