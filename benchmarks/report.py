"""The README's figures, written from benchmarks/results/ and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

README = Path(__file__).parents[1] / "README.md"
BATCH_SIZES = (1, 8, 32)
START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def section() -> str:
    """The text between the README's markers."""
    runs, swap = [_load(f"serve-batch{size}") for size in BATCH_SIZES], _load("swap")
    machine, job, ceiling = runs[-1]["machine"], runs[-1]["job"], runs[-1]["ceilings"]
    transport = "streamed over HTTP" if job["stream"] else "over HTTP"
    lines = [
        f"{machine['num_cores']} cores of an {machine['cpu']}, torch {machine['torch']}, {job['model']} in "
        f"{job['dtype']}, commit {machine['commit']}. Requests of {job['num_prompt_tokens']} + {job['num_new_tokens']} "
        f"tokens, all at once, greedy, {transport}; HF `generate` runs the same prompts as one static batch without "
        f"HTTP. Output tokens/s of the whole job, medians of {job['rounds']} paired rounds (`make bench`); ratios are "
        f"taken within rounds. Mixed means {job['num_sets']} interventions ({job['sets']}). At this machine's measured "
        f"{ceiling['gemm_gflops']} GFLOP/s, {job['num_requests']} requests can reach {ceiling['tokens_per_s']:.0f}.",
        "",
        "| requests | HF `generate` | base | mixed | base / `generate` (range) | mixed / base (range) |",
        "|---|---|---|---|---|---|",
        *map(_row, runs),
        "",
        f"Swapping, {swap['job']['num_sets']} sets ({swap['job']['sets']}), medians (`python -m benchmarks.swap`): "
        f"a warm request for one token takes {swap['warm_ms']['median']} ms. "
        f"The first request with a set just uploaded takes {_above(swap['just_uploaded_above_warm_ms'])}; "
        f"the first with a set that is on disk but not loaded takes {_above(swap['not_loaded_above_warm_ms'])}. "
        f"The upload itself, validation and self-test included, takes {swap['upload_ms']['median']} ms.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write the section into the README."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(START, 1)
    _, after = rest.split(END, 1)
    README.write_text(f"{before}{START}\n{section()}\n{END}{after}", encoding="utf-8")


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


def _row(run: dict[str, Any]) -> str:
    rates = run["tokens_per_s"]
    return (
        f"| {run['job']['num_requests']} | {rates['hf_generate']} | {rates['server_base']} | {rates['server_mixed']} "
        f"| {_ratio(run['base_over_hf'])} | {_ratio(run['mixed_over_base'])} |"
    )


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _above(spread: dict[str, float]) -> str:
    word = "more" if spread["median"] >= 0 else "less"
    return f"{abs(spread['median'])} ms {word} (at most {spread['max']} ms more)"


if __name__ == "__main__":
    main()
