"""The tables and the plot of docs/interventions.md, and README's, written from benchmarks/results/ and nowhere else.

python -m benchmarks.methods.report
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from types import MappingProxyType
from typing import Any

from benchmarks.figures import read_result
from benchmarks.methods.methods import COMPARED, LAYERS, POSITIONS, RANKS, grid_name
from benchmarks.methods.plot import PLOT, draw
from benchmarks.methods.results import (
    CURVE_EXAMPLES,
    CURVE_METHODS,
    NUM_EXAMPLES,
    SEARCH_TASK,
    SEEDS,
    chosen_rate,
    load_records,
)
from benchmarks.methods.tasks import TASKS

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "docs/interventions.md", ROOT / "README.md")
Records = Sequence[Mapping[str, Any]]


def sections() -> dict[str, str]:
    """The text between the markers `<!-- methods:NAME -->` and `<!-- methods:end -->`, by name."""
    records = load_records()
    return {name: write(records) for name, write in _SECTIONS.items()}


def with_sections(text: str) -> str:
    """A page with every marked section written anew."""
    written = sections()
    return re.sub(
        r"(<!-- methods:(?!end)([\w-]+) -->\n).*?(<!-- methods:end -->)",
        lambda match: f"{match[1]}{written[match[2]]}\n{match[3]}",
        text,
        flags=re.DOTALL,
    )


def plot() -> str:
    """The sample efficiency of `CURVE_METHODS`, as SVG."""
    records = load_records()
    curves = {
        COMPARED[method].title: [_mean_and_sd(_accuracies(records, SEARCH_TASK, method, n)) for n in CURVE_EXAMPLES]
        for method in CURVE_METHODS
    }
    (base,) = _accuracies(records, SEARCH_TASK, "base", 0)
    return draw(CURVE_EXAMPLES, curves, base)


def main() -> None:
    """Write all of it."""
    for page in PAGES:
        page.write_text(with_sections(page.read_text(encoding="utf-8")), encoding="utf-8")
    PLOT.write_text(plot(), encoding="utf-8")


def _main_table(records: Records) -> str:
    header = ["", "Trained", "File", "Training", *TASKS, "Serving, in our server", "Serving, in `generate`"]
    return _table(header, [_main_row(records, method) for method in COMPARED])


def _main_row(records: Records, method: str) -> list[str]:
    if method == "base":
        accuracies = [f"{100 * _accuracies(records, task, method, 0)[0]:.1f}" for task in TASKS]
        return [COMPARED[method].title, "0", "", "", *accuracies, "1", "1"]
    accuracies = [_percent(_accuracies(records, task, method, NUM_EXAMPLES)) for task in TASKS]
    runs = _runs(records, SEARCH_TASK, method, NUM_EXAMPLES)
    return [
        COMPARED[method].title,
        f"{runs[0]['num_parameters']:,}",
        f"{runs[0]['file_bytes'] / 1000:,.0f} kB",
        f"{median(run['train_cpu_s'] for run in runs):.0f} s",
        *accuracies,
        "1 if merged, which is for all requests"
        if method.startswith("lora")
        else _over_base("methods-serving", method),
        _over_base("methods-generate", method),
    ]


def _readme_table(records: Records) -> str:
    rows = []
    for method in ("base", "loreft-l1", "loreft-f3l3", "direft-f3l3", "lora-r8", "prefix-10-rows"):
        row = _main_row(records, method)
        rows.append([*row[:2], *row[4:7]])
    return _table(["", "Trained", *TASKS], rows)


def _conditions(_: Records) -> str:
    server, generate = read_result("methods-serving"), read_result("methods-generate")
    sizes = [
        f"{result['job']['num_requests']} requests of {result['job']['num_prompt_tokens']} + "
        f"{result['job']['num_new_tokens']} tokens, {result['rounds']} rounds, {result['base_s']['median']:.1f} s"
        for result in (server, generate)
    ]
    machine = server["machine"]
    return (
        f"{NUM_EXAMPLES} training rows, 300 held-out ones, {len(SEEDS)} seeds: mean ± standard deviation of the "
        f"accuracy in percent. Training is CPU time on {SEARCH_TASK} (one thread, bfloat16 products, other work beside "
        f"it; median of the seeds). Serving is the time of a job over the same job on the base model, median and range "
        f"of rounds that take turns: in our server ({sizes[0]} on the base), and in transformers' `generate` "
        f"({sizes[1]}) with PEFT's adapter unmerged and our `attach`. "
        f"{machine['num_cores']} cores of an {machine['cpu']}, torch {machine['torch']}, transformers "
        f"{machine['transformers']}."
    )


def _curve_table(records: Records) -> str:
    rows = [
        [COMPARED[method].title, *(_percent(_accuracies(records, SEARCH_TASK, method, n)) for n in CURVE_EXAMPLES)]
        for method in CURVE_METHODS
    ]
    return _table(["", *(f"{n:,} rows" for n in CURVE_EXAMPLES)], rows)


def _places_table(records: Records) -> str:
    rows = [
        [f"`{layers}`", *(_cell(records, grid_name(layers, 4, positions)) for positions in POSITIONS)]
        for layers in LAYERS
    ]
    return _table(["Layers", *(f"`{positions}`" for positions in POSITIONS)], rows)


def _ranks_table(records: Records) -> str:
    names = {rank: grid_name(LAYERS[1], rank, POSITIONS[1]) for rank in RANKS}
    parameters = [
        f"{_runs(records, SEARCH_TASK, name, NUM_EXAMPLES)[0]['num_parameters']:,}" for name in names.values()
    ]
    return _table(
        ["", *(f"rank {rank}" for rank in RANKS)],
        [["Accuracy", *(_cell(records, name) for name in names.values())], ["Trained", *parameters]],
    )


def _rates_table(records: Records) -> str:
    rows = []
    for name, method in COMPARED.items():
        if method.rates:
            tried = {r["lr"]: r["accuracy"] for r in records if (r["split"], r["method"]) == ("dev", name)}
            cells = {rate: f"{100 * tried[rate]:.0f} ({rate:g})" for rate in method.rates}
            chosen = chosen_rate(records, name)
            rows.append([method.title, *(f"**{cell}**" if rate == chosen else cell for rate, cell in cells.items())])
    return _table(["", "Lowest rate", "Middle", "Highest"], rows)


_SECTIONS: Mapping[str, Callable[[Records], str]] = MappingProxyType(
    {
        "main": _main_table,
        "readme": _readme_table,
        "conditions": _conditions,
        "curve": _curve_table,
        "places": _places_table,
        "ranks": _ranks_table,
        "rates": _rates_table,
    }
)


def _runs(records: Records, task: str, method: str, num_examples: int) -> list[Mapping[str, Any]]:
    """The reported runs, one a seed.

    Raises:
        ValueError: there is none, or two of one seed.
    """
    wanted = ("test", task, method, num_examples)
    runs = [r for r in records if (r["split"], r["task"], r["method"], r["num_examples"]) == wanted]
    if not runs or len({run["seed"] for run in runs}) != len(runs):
        raise ValueError(f"{len(runs)} records of {wanted}: run benchmarks.methods.run")
    return runs


def _accuracies(records: Records, task: str, method: str, num_examples: int) -> list[float]:
    """One of every seed that has run."""
    return [float(run["accuracy"]) for run in _runs(records, task, method, num_examples)]


def _cell(records: Records, method: str) -> str:
    (run,) = _runs(records, SEARCH_TASK, method, NUM_EXAMPLES)
    return f"{100 * run['accuracy']:.1f}"


def _mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def _percent(accuracies: Sequence[float]) -> str:
    average, deviation = _mean_and_sd(accuracies)
    missing = "" if len(accuracies) == len(SEEDS) else f" (seeds: {len(accuracies)})"
    return f"{100 * average:.1f} ± {100 * deviation:.1f}{missing}"


def _over_base(result: str, method: str) -> str:
    ratio = read_result(result)["over_base"].get(method)
    return "" if ratio is None else f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
