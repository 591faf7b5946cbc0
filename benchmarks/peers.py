"""How fast is our server, and is it with mixed interventions as fast as others are on the bare base model?

Question: output tokens/s of 1, 8 and 32 requests of 128 + 64 tokens, all at once, greedy, streamed over HTTP.
Baselines: vLLM's CPU build (compiled), llama.cpp's server, and HF `generate` as one static batch without HTTP; those
whose programs are given, as their makers ship them. Rounds are paired (A B C A B C …): in each, one after the other
runs the job while all others are stopped, with prompts of its own; ratios are taken within a round.
Ceiling: weights only, at the machine's measured matrix product and memory read rates.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import ceilings, describe, job_ceiling, machine_lock
from benchmarks.peer_processes import Contender, HFContender, HTTPContender, start_llama, start_vllm
from benchmarks.server_process import ServerProcess, start_server, upload_random_sets
from benchmarks.streaming import random_prompts

NUM_PROMPT_TOKENS, NUM_NEW_TOKENS, NUM_SETS = 128, 64, 8
BASE, MIXED = "ours_base", "ours_mixed"
LOCK_S = 100
"""After which no further round starts without letting others have the machine."""


def start_ours(folder: Path, flags: list[str]) -> tuple[ServerProcess, list[str]]:
    """Our server, stopped, and the names of its sets."""
    folder.mkdir()
    server = start_server(folder / "store", *flags, log_path=folder / "server.log")
    try:
        server.wait_until_ready()
        names = asyncio.run(upload_random_sets(server.url, folder, NUM_SETS))
    except Exception:
        server.close()
        raise
    server.pause()
    return server, names


def start_contenders(args: argparse.Namespace, folder: Path, stack: ExitStack) -> list[Contender]:
    """Everyone who takes part, ready and stopped, in the order of their turns."""
    contenders: list[Contender] = []

    def add(contender: Contender) -> None:
        contenders.append(contender)
        stack.callback(contender.close)

    if args.vllm_python:
        add(start_vllm(args.vllm_python, args.vllm_preload, folder))
    for gguf in args.gguf:
        add(start_llama(args.llama_server, gguf, folder))
    add(HFContender())
    flags, version = args.server_flags.split(), str(describe()["reft-serve"])
    for dtype in args.weight_dtypes:
        server, names = start_ours(folder / dtype, [*flags, "--engine-weight-dtype", dtype])
        add(HTTPContender(f"{MIXED}_{dtype}", version, server, interventions=names))
    server, names = start_ours(folder / "ours", flags)
    add(HTTPContender(BASE, version, server))
    contenders.append(HTTPContender(MIXED, version, server, interventions=names))
    return contenders


def run_round(contenders: list[Contender], batch: int, seed: int, num_new_tokens: int) -> dict[str, float]:
    """One turn each; output tokens per second of the whole job by name."""
    rates = {}
    for turn, contender in enumerate(contenders):
        contender.resume()
        contender.run_s(random_prompts(turn, 1, 8), 2)  # awake again
        prompts = random_prompts(seed * len(contenders) + turn, batch, NUM_PROMPT_TOKENS)
        rates[contender.name] = batch * num_new_tokens / contender.run_s(prompts, num_new_tokens)
        contender.pause()
    return rates


def measure(contenders: list[Contender], batch: int, rounds: int, lock: Path | None) -> dict[str, Any]:
    """Paired rounds of one batch size, after a short one that warms up; the lock is held for a few at a time."""
    done: list[dict[str, float]] = []
    while len(done) < rounds:
        with machine_lock(lock, is_exclusive=True):
            started = time.monotonic()
            if not done:
                run_round(contenders, batch, 1000 * batch + 500, 4)
            while len(done) < rounds and time.monotonic() - started < LOCK_S:
                done.append(run_round(contenders, batch, 1000 * batch + len(done), NUM_NEW_TOKENS))
                line = "  ".join(f"{name} {rate:.1f}" for name, rate in done[-1].items())
                print(f"round {len(done)}: {line}", flush=True)
    rates = {contender.name: [rates[contender.name] for rates in done] for contender in contenders}
    return {
        "tokens_per_s": {name: spread(values, 1) for name, values in rates.items()},
        "mixed_over": {name: ratios(rates[MIXED], values) for name, values in rates.items() if name != MIXED},
    }


def job_description(args: argparse.Namespace, batch: int) -> dict[str, Any]:
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
        "rounds": args.rounds,
        "server_flags": args.server_flags,
    }


def absent(args: argparse.Namespace) -> list[str]:
    """Peers whose programs were not given."""
    flags = {"vllm_cpu (--vllm-python)": args.vllm_python, "llama.cpp (--llama-server, --gguf)": args.llama_server}
    return [name for name, value in flags.items() if not value]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", type=Path, help="python of an environment that has vllm-cpu")
    parser.add_argument("--vllm-preload", type=Path, help="a library to preload for vLLM, such as tcmalloc")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's llama-server program")
    parser.add_argument("--gguf", type=Path, nargs="+", default=[], help="the same model as GGUF files, for llama.cpp")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32], help="concurrent requests (1 8 32)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds of each batch (default 5)")
    parser.add_argument(
        "--weight-dtypes",
        nargs="+",
        default=[],
        help="also run our server, mixed, with smaller weights (bfloat16 int8)",
    )
    parser.add_argument("--server-flags", default="", help="flags of our own server, in one string")
    parser.add_argument("--lock", type=Path, help="flock this file: shared to start servers, exclusive to measure")
    return parser.parse_args()


def main() -> None:
    """Run, print, and keep the figures."""
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with us
    if bool(args.llama_server) != bool(args.gguf):
        raise SystemExit("--llama-server and --gguf go together")
    for name in absent(args):
        print(f"not given, left out: {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        with machine_lock(args.lock, is_exclusive=False):
            contenders = start_contenders(args, Path(folder), stack)
        for batch in args.batches:
            with machine_lock(args.lock, is_exclusive=True):
                peak = ceilings()
            ceiling = job_ceiling(peak, batch, NUM_PROMPT_TOKENS, NUM_NEW_TOKENS)
            print(f"batch {batch}: ceiling {peak}, so at most {ceiling:.0f} output tok/s in float32", flush=True)
            result = {
                "benchmark": "peers",
                "machine": describe(),
                "ceilings": {**peak, "tokens_per_s": round(ceiling, 1)},
                "job": job_description(args, batch),
                "versions": {contender.name: contender.version for contender in contenders},
                "left_out": absent(args),
                **measure(contenders, batch, args.rounds, args.lock),
            }
            write_result(f"peers-batch{batch}", result)


if __name__ == "__main__":
    main()
