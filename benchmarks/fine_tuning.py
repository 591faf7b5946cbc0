"""Does a fine-tuning job make requests wait?

Question: time to the first token (256 prompt tokens, 16 new ones, one request at a time) while a job trains in the same
server, with the default settings: one training process of one thread at the lowest priority.
Baseline: the same requests, the training process stopped. Phases are paired (alone, training; alone, training; …); the
ratio is of the phases' medians, within a round. Beside it, the job's steps per second, with requests and without.
Ceiling: the prompt's tokens at the machine's measured matrix product rate.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import ceilings, describe, machine_lock, median, prefill_floor_s
from benchmarks.server_process import start_server
from benchmarks.streaming import completion_body, random_prompts, stream_completion

PROMPT_TOKENS, NEW_TOKENS, THINK_TIME_S = 256, 16, 0.1
ROWS = [
    {"prompt": f"Question {number}: " + "what is it that the people here say? " * 8, "completion": f" Answer {number}."}
    for number in range(32)
]
OPTIONS = {"epochs": 1000, "batch_size": 8, "prefix_cache_mb": 0}
PHASES = ("alone", "training")


class Job:
    """A job that trains on and on, and its process.

    Args:
        pid: of the server, whose child trains.
        progress: the file that the training process appends a line to after every step.
    """

    def __init__(self, url: str, pid: int, store_dir: Path) -> None:
        data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
        with httpx.Client(base_url=url, timeout=60) as client:
            form = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", data)}}
            file = client.post("/v1/files", **form).raise_for_status().json()
            method = {"type": "reft", "reft": {"hyperparameters": OPTIONS}}
            body = {"model": "base", "training_file": file["id"], "method": method}
            job = client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()
        self._progress = store_dir / "fine-tuning" / "jobs" / job["id"] / "progress.jsonl"
        self._server_pid = pid

    def wait_for_steps(self, timeout_s: float = 300) -> None:
        """Return once it trains.

        Raises:
            RuntimeError: it does not.
        """
        deadline = time.monotonic() + timeout_s
        while self.num_steps < 2:
            if time.monotonic() > deadline:
                raise RuntimeError("the job did not start to train")
            time.sleep(0.2)

    @property
    def num_steps(self) -> int:
        """Steps done so far."""
        return self._progress.read_text().count('"stepped"') if self._progress.is_file() else 0

    def signal(self, number: signal.Signals) -> None:
        """Send the training process a signal."""
        children = Path(f"/proc/{self._server_pid}/task").glob("*/children")
        for pid in {int(pid) for path in children for pid in path.read_text().split()}:
            if b"fine_tuning.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, number)


async def send_requests(url: str, seed: int, num_requests: int) -> list[float]:
    """Seconds to the first token of requests sent one after the other."""
    seconds = []
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for prompt in random_prompts(seed, num_requests, PROMPT_TOKENS):
            answer = await stream_completion(client, completion_body(prompt, NEW_TOKENS))
            seconds.append(answer.first_token_s)
            await asyncio.sleep(THINK_TIME_S)
    return seconds


def measure(url: str, job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Paired phases; seconds, and the job's steps per second."""
    samples: dict[str, list[list[float]]] = {phase: [] for phase in PHASES}
    rates: dict[str, list[float]] = {"without_requests": [], "with_requests": []}
    for index in range(1, args.rounds + 1):
        with machine_lock(args.lock, is_exclusive=True):
            for phase in PHASES:
                job.signal(signal.SIGCONT if phase == "training" else signal.SIGSTOP)
                first_step, started = job.num_steps, time.monotonic()
                samples[phase].append(asyncio.run(send_requests(url, 10 * index + PHASES.index(phase), args.requests)))
                elapsed_s = time.monotonic() - started
                print(f"round {index}: {phase}: median {median(samples[phase][-1]):.3f} s", flush=True)
            rates["with_requests"].append((job.num_steps - first_step) / elapsed_s)
            first_step = job.num_steps
            time.sleep(args.idle_s)
            rates["without_requests"].append((job.num_steps - first_step) / args.idle_s)
    medians = {phase: [median(seconds) for seconds in rounds] for phase, rounds in samples.items()}
    return {
        "ttft_s": {phase: spread(list(itertools.chain(*rounds))) for phase, rounds in samples.items()},
        "training_over_alone": ratios(medians["training"], medians["alone"]),
        "job_steps_per_s": {name: spread(values, 2) for name, values in rates.items()},
    }


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--requests", type=int, default=16, help="requests of a phase (default 16)")
    parser.add_argument("--idle-s", type=float, default=10, help="time that the job is watched without requests")
    parser.add_argument("--server-flags", default="", help="flags of the server, in one string")
    parser.add_argument("--lock", type=Path, help="flock this file: shared to start the server, exclusive to measure")
    parser.add_argument("--dry-run", action="store_true", help="print the result and keep nothing")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server ends with us
    with machine_lock(args.lock, is_exclusive=True):
        peak = ceilings()
    floor_s = prefill_floor_s(peak, PROMPT_TOKENS)
    print(f"ceiling: {peak}, so the prompt takes at least {floor_s:.3f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        store_dir = Path(folder) / "store"
        server = start_server(store_dir, *args.server_flags.split())
        try:
            with machine_lock(args.lock, is_exclusive=False):
                server.wait_until_ready()
                asyncio.run(send_requests(server.url, 1, 2))
                job = Job(server.url, server.pid, store_dir)
                job.wait_for_steps()
            figures = measure(server.url, job, args)
        finally:
            server.close()
    result = {
        "benchmark": "fine_tuning",
        "machine": describe(),
        "ceilings": {**peak, "prompt_s": round(floor_s, 3)},
        "job": {
            "model": "SmolLM2-135M-Instruct",
            "dtype": "float32",
            "request_tokens": [PROMPT_TOKENS, NEW_TOKENS],
            "requests_per_phase": args.requests,
            "training": {"rows": len(ROWS), **OPTIONS},
            "server_flags": args.server_flags,
            "rounds": args.rounds,
        },
        **figures,
    }
    if args.dry_run:
        print(json.dumps(result), flush=True)
    else:
        write_result("fine_tuning", result)


if __name__ == "__main__":
    main()
