"""Tables of the results: what `make bench` prints, and what the README shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

Result = Mapping[str, Any]

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "ours_mixed": "reft-serve, interventions mixed",
        "ours_base": "reft-serve, base model",
        "vllm_cpu": "vLLM for CPUs, base model",
        "vllm_cpu_lora_mixed": "vLLM for CPUs, LoRAs mixed",
        "llama_cpp_f32": "llama.cpp, base model",
        "llama_cpp_control_vector": "llama.cpp, one control vector for all requests",
        "ours_steering_mixed": "reft-serve, steering vectors mixed",
        "hf_generate": "HF generate, base model",
        "peft_lora_mixed": "PEFT on HF generate, LoRAs mixed",
        "pyreft_sets": "pyreft, one batch per intervention",
        "ours_mixed_bfloat16": "reft-serve, mixed, weights in bfloat16",
        "ours_mixed_int8": "reft-serve, mixed, weights in int8",
        "llama_cpp_f16": "llama.cpp, base model, weights in float16",
    }
)
"""Contenders of the peer comparisons, in the order of the table."""
ADAPTER_KINDS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("ours", "f3+l3"): "reft-serve, prompt-only sets (f3+l3)",
        ("ours", "all"): "reft-serve, sets at all positions",
        ("vllm", "lora"): "vLLM for CPUs, LoRAs",
        ("peft", "lora"): "PEFT on HF generate, LoRAs",
    }
)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def ratio(figure: Mapping[str, float], digits: int = 2) -> str:
    """A median with its range."""
    return f"{figure['median']:.{digits}f} ({figure['min']:.{digits}f} to {figure['max']:.{digits}f})"


def peers(results: Sequence[Result]) -> Table:
    """Every contender of some comparisons once; ratios are of its own comparison's rounds."""
    sizes = [batch["num_requests"] for batch in results[0]["batches"]]
    rows = []
    for name, label in LABELS.items():
        batches = next((run["batches"] for run in results if name in run["batches"][0]["tokens_per_s"]), None)
        if batches is None:
            continue
        rates = [f"{batch['tokens_per_s'][name]['median']:.0f}" for batch in batches]
        over = [ratio(batch["mixed_over"][name]) if name in batch["mixed_over"] else "" for batch in batches]
        rows.append((label, *rates, *over))
    columns = ("output tokens/s", *(f"{n} at once" for n in sizes), *(f"mixed over it, {n}" for n in sizes))
    return Table("Throughput beside others", columns, rows)


def distinct(results: Sequence[Result]) -> Table:
    """Throughput over the base's on the same server, by the number of distinct adapters in the batch."""
    numbers = sorted({point["num_distinct"] for run in results for one in run["series"] for point in one["over_base"]})
    rows = []
    for (server, kind), label in ADAPTER_KINDS.items():
        run = next((run for run in results if run["job"]["server"] == server), None)
        if run is None:
            continue
        points = {
            point["num_distinct"]: point for one in run["series"] for point in one["over_base"] if point["kind"] == kind
        }
        base = " / ".join(f"{one['base_tokens_per_s']:.0f}" for one in run["series"])
        rows.append((label, base, *(ratio(points[number]) if number in points else "" for number in numbers)))
    columns = ("over the base's throughput", "base, tokens/s", *(f"{number} distinct" for number in numbers))
    return Table("Distinct adapters in one batch", columns, rows)


def prefix(run: Result) -> Table:
    """Time to the first token with a shared system prompt."""
    labels = {
        "limited": "reuse within one intervention only",
        "shared": "reuse across interventions",
        "warm": "the same, after base traffic has seen the prompt",
    }
    times = {"limited": "1", "shared": ratio(run["limited_over_shared"]), "warm": ratio(run["limited_over_warm"])}
    rows = [
        (label, ratio(run["mean_ttft_s"][name]), ratio(run["median_ttft_s"][name]), times[name])
        for name, label in labels.items()
    ]
    columns = ("time to first token", "mean, s", "median, s", "times less (mean)")
    return Table("Shared prefixes", columns, rows)


def swap(run: Result) -> Table:
    """What the first use of a set costs."""
    labels = {
        "warm_ms": "a warm request for one token",
        "just_uploaded_above_warm_ms": "more for the first request with a set just uploaded",
        "not_loaded_above_warm_ms": "more for the first request with a set on disk, not loaded",
        "upload_ms": "an upload, validation and self-test included",
    }
    rows = [(label, f"{run[name]['median']:.1f}", f"{run[name]['max']:.1f}") for name, label in labels.items()]
    return Table("Swapping", ("latency", "median, ms", "largest, ms"), rows)


def pool(run: Result) -> Table:
    """Throughput while requests choose among many stored sets."""
    labels = {"one_set": "one set", "zipf": "Zipf: the n-th set with a weight of 1/n", "uniform": "all sets alike"}
    rows = [
        (
            label,
            ratio(run["tokens_per_s"][name], 0),
            ratio(run["over_one_set"][name]) if name in run["over_one_set"] else "1",
            f"{run['num_loads'][name]['median']:.0f}" if name in run["num_loads"] else "0",
        )
        for name, label in labels.items()
        if name in run["tokens_per_s"]
    ]
    return Table("Many stored sets", ("requests choose", "tokens/s", "over one set", "loads from disk"), rows)
