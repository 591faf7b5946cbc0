"""The runs and where their records are kept: one JSON object a line in `benchmarks/results/methods.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.machine import RESULTS
from benchmarks.methods.methods import COMPARED, GRID, METHODS
from benchmarks.methods.tasks import TASKS

RECORDS = RESULTS / "methods.jsonl"
NUM_EXAMPLES = 400
SEEDS = (0, 1, 2)
SEARCH_TASK = "word-category"
"""Where learning rates, layers, ranks and positions are compared, and the number of examples."""
CURVE_METHODS = ("loreft-f3l3", "lora-r8", "loreft-l1", "prefix-10-rows", "prefix-10")
CURVE_EXAMPLES = (10, 100, 1000)


@dataclass(frozen=True)
class Run:
    """One training and its score; `dev` runs choose the learning rate, `test` runs are reported.

    `lr` is None in test runs: it follows from the dev runs, and it is in the record.
    """

    split: Literal["dev", "test"]
    task: str
    method: str
    seed: int
    num_examples: int
    lr: float | None = None


def planned() -> Iterator[Run]:
    """Every run, the most wanted first."""
    yield from _search(COMPARED)
    yield from (_test(task, method, SEEDS[0]) for task in TASKS for method in COMPARED)
    yield from _curve(CURVE_METHODS[:2], SEEDS[0])
    for seed in SEEDS[1:]:
        yield from (_test(task, method, seed) for task in TASKS for method in COMPARED if method != "base")
        yield from (_test(SEARCH_TASK, method, SEEDS[0]) for method in GRID if seed == SEEDS[1])
    for seed in SEEDS:
        yield from _curve(CURVE_METHODS, seed)


def _search(methods: Iterable[str]) -> Iterator[Run]:
    for method in methods:
        for lr in COMPARED[method].rates:
            yield Run("dev", SEARCH_TASK, method, SEEDS[0], NUM_EXAMPLES, lr)


def _test(task: str, method: str, seed: int) -> Run:
    return Run("test", task, method, seed, 0 if method == "base" else NUM_EXAMPLES)


def _curve(methods: Sequence[str], seed: int) -> Iterator[Run]:
    for num_examples in CURVE_EXAMPLES:
        yield from (Run("test", SEARCH_TASK, method, seed, num_examples) for method in methods)


def chosen_rate(records: Sequence[Mapping[str, Any]], method: str) -> float:
    """The learning rate with the best dev accuracy; a tie goes to the lower dev loss.

    Raises:
        ValueError: there is no dev run yet.
    """
    wanted = METHODS[method].rates_of or method
    tried = [r for r in records if (r["split"], r["task"], r["method"]) == ("dev", SEARCH_TASK, wanted)]
    if not tried:
        raise ValueError(f"no learning rate has been tried for {wanted}")
    best = max(tried, key=lambda record: (record["accuracy"], -record["loss"]))
    return float(best["lr"])


def load_records(path: Path = RECORDS) -> list[dict[str, Any]]:
    """All records so far, oldest first."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def append_record(record: dict[str, Any], path: Path = RECORDS) -> None:
    """Add one record; a run that is cut off leaves the earlier ones."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def is_done(run: Run, records: Sequence[dict[str, Any]]) -> bool:
    """Whether a record of this very run is there."""
    wanted = asdict(run)
    if run.lr is None:
        del wanted["lr"]
    return any(all(record[name] == value for name, value in wanted.items()) for record in records)
