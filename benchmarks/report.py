"""The README's figures, written from benchmarks/results/ and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def section() -> str:
    """The text between the README's markers."""
    serve, swap = _load("serve-batch32"), _load("swap")
    machine, job, rates = serve["machine"], serve["job"], serve["tokens_per_s"]
    transport = "streamed over HTTP" if job["stream"] else "over HTTP"
    sets, ceiling = job["sets"], serve["ceilings"]
    lines = [
        f"{machine['num_cores']} cores of an {machine['cpu']}, torch {machine['torch']}, {job['model']} in "
        f"{job['dtype']}, commit {machine['commit']}. {job['num_requests']} requests of {job['num_prompt_tokens']} + "
        f"{job['num_new_tokens']} tokens at once, greedy, {transport}; medians of {job['rounds']} paired rounds "
        f"(`make bench`). At this machine's measured {ceiling['gemm_gflops']} GFLOP/s the job can reach "
        f"{ceiling['tokens_per_s']:.0f} output tokens/s.",
        "",
        "| | output tokens/s | ratio (range over rounds) |",
        "|---|---|---|",
        f"| HF `generate`, one static batch, no HTTP | {rates['hf_generate']} | 1 |",
        f"| reft-serve, base model | {rates['server_base']} | {_ratio(serve['base_over_hf'])} of `generate` |",
        f"| reft-serve, {job['num_sets']} interventions mixed ({sets}) | {rates['server_mixed']} | "
        f"{_ratio(serve['mixed_over_base'])} of base |",
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


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _above(spread: dict[str, float]) -> str:
    word = "more" if spread["median"] >= 0 else "less"
    return f"{abs(spread['median'])} ms {word} (at most {spread['max']} ms more)"


if __name__ == "__main__":
    main()
