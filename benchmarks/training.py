"""How long does a training step take, and how much memory, against pyreft's?

Question: seconds per optimizer step and the peak of the resident set while training LoReFT of rank 4 at every layer's
`block_output`, tied, in float32, on the chat rows of examples/shout. Required: at most 0.75 of pyreft's step, and no
more memory, with our prefix cache off; with it on (positions l3, where it can work) the figures are reported beside.
Baseline: pyreft 0.1.0 with pyvene 0.1.8 in an environment of its own, same rows, batch size and number of threads.
Turns alternate (pyreft, ours; pyreft, ours; …) while the other process is stopped; the ratio is of medians in a round.
Ceiling: the frozen model's matrix products, forward and for the gradient of the rows, at the machine's product rate.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import NUM_BLOCK_WEIGHTS, NUM_HEAD_WEIGHTS, ceilings, describe, machine_lock
from benchmarks.pausable import PausableProcess
from reft_interventions.training import TrainingOptions, load_model, read_dataset
from reft_interventions.training.base_model import locate_model

DATA = Path(__file__).parents[1] / "examples" / "shout" / "data" / "train.jsonl"
BATCH_SIZE, NUM_ROWS = 4, 12
POSITIONS = ("f3+l3", "l3")
Rows = list[list[list[int]]]


class TrainingWorker(PausableProcess):
    """A process that trains one epoch on the rows of each line it reads."""

    def __init__(self, command: list[str], python_path: str) -> None:
        environment = os.environ | {"PYTHONPATH": python_path}
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def train(self, rows: Rows) -> dict[str, float]:
        """Seconds, steps, peak bytes and losses of one epoch."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"rows": rows}) + "\n")
        self._process.stdin.flush()
        result: dict[str, float] = json.loads(self._process.stdout.readline())
        return result

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        super().close()


def read_rows() -> Rows:
    """Token ids of prompt and answer: the first rows of the file."""
    _, tokenizer, _ = load_model("smollm2-135m-instruct")
    examples = read_dataset(DATA, tokenizer, TrainingOptions().max_length).examples[:NUM_ROWS]
    return [[list(example.prompt_ids), list(example.answer_ids)] for example in examples]


def step_floor_s(peak: dict[str, float], rows: Rows) -> float:
    """Seconds of a mean step if only products ran: blocks on every token and the head on every answer token, twice."""
    num_tokens = sum(len(prompt) + len(answer) - 1 for prompt, answer in rows)
    num_answer_tokens = sum(len(answer) for _, answer in rows)
    products = 2 * 2 * (NUM_BLOCK_WEIGHTS * num_tokens + NUM_HEAD_WEIGHTS * num_answer_tokens)
    return products / (peak["gemm_gflops"] * 1e9) / (len(rows) / BATCH_SIZE)


def commands(positions: str, pyreft_python: Path) -> dict[str, tuple[list[str], str]]:
    """Command and PYTHONPATH of each contender."""
    root = str(Path(__file__).parents[1])
    folder, _ = locate_model("smollm2-135m-instruct")
    job = [folder, positions, str(BATCH_SIZE)]
    own_path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    ours = [sys.executable, "-m", "benchmarks.training_worker", *job]
    contenders = {
        "pyreft": ([str(pyreft_python), "-m", "benchmarks.pyreft_worker", *job], root),
        "ours": ([*ours, "0"], own_path),
    }
    if positions == "l3":  # f3 leaves no prompt token before the first edited one
        contenders["ours_prefix_cache"] = ([*ours, "4096"], own_path)
    return contenders


def measure(positions: str, rows: Rows, args: argparse.Namespace) -> dict[str, Any]:
    """Paired turns of one position rule."""
    results: dict[str, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        workers: dict[str, TrainingWorker] = {}
        with machine_lock(args.lock, is_exclusive=True):
            for name, (command, python_path) in commands(positions, args.pyreft_python).items():
                workers[name] = TrainingWorker(command, python_path)
                stack.callback(workers[name].close)
                workers[name].train(rows[:BATCH_SIZE])
                workers[name].pause()
        for index in range(args.rounds):
            with machine_lock(args.lock, is_exclusive=True):
                for name, worker in workers.items():
                    worker.resume()
                    result = worker.train(rows)
                    worker.pause()
                    results.setdefault(name, []).append(result)
                    print(f"{positions} round {index + 1}: {name}: {result}", flush=True)
    steps = {name: [r["seconds"] / r["num_steps"] for r in turns] for name, turns in results.items()}
    peaks = {name: [r["peak_bytes"] / 2**20 for r in turns] for name, turns in results.items()}
    figures: dict[str, Any] = {
        "positions": positions,
        "step_s": {name: spread(values) for name, values in steps.items()},
        "peak_mib": {name: spread(values, 0) for name, values in peaks.items()},
        "step_over_pyreft": {name: ratios(steps[name], steps["pyreft"]) for name in steps if name != "pyreft"},
        "peak_over_pyreft": {name: ratios(peaks[name], peaks["pyreft"]) for name in peaks if name != "pyreft"},
    }
    if "ours_prefix_cache" in results:
        figures["prefix_cache_fill_s"] = spread([r["prepare_seconds"] for r in results["ours_prefix_cache"]])
    return figures


def main() -> None:
    """Run, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pyreft-python", type=Path, required=True, help="python of an environment that has pyreft")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--lock", type=Path, help="flock this file while measuring")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers end with us
    rows = read_rows()
    with machine_lock(args.lock, is_exclusive=True):
        peak = ceilings()
    floor_s = step_floor_s(peak, rows)
    print(f"ceiling: {peak}, so a step takes at least {floor_s:.3f} s", flush=True)
    series = [measure(positions, rows, args) for positions in POSITIONS]
    result = {
        "benchmark": "training",
        "machine": describe(),
        "baseline": {"pyreft": "0.1.0", "pyvene": "0.1.8", **_versions(args.pyreft_python)},
        "ceilings": {**peak, "step_s": round(floor_s, 3)},
        "job": {
            "model": "SmolLM2-135M-Instruct",
            "dtype": "float32",
            "formula": "loreft",
            "layers": "all 30",
            "low_rank_dimension": 4,
            "batch_size": BATCH_SIZE,
            "rows": NUM_ROWS,
            "tokens": sum(len(prompt) + len(answer) for prompt, answer in rows),
            "rounds": args.rounds,
        },
        "series": series,
    }
    write_result("training", result)


def _versions(python: Path) -> dict[str, str]:
    names = ("torch", "transformers")
    script = f"import json; from importlib.metadata import version; print(json.dumps([version(n) for n in {names}]))"
    done = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True)
    return dict(zip(names, json.loads(done.stdout), strict=True))


if __name__ == "__main__":
    main()
