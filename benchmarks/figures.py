"""Medians and ranges, and the files that keep them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS, median


def spread(values: list[float], digits: int = 3) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    """Median and range of the ratios within rounds."""
    return spread([a / b for a, b in zip(above, below, strict=True)])


def write_result(name: str, result: dict[str, Any], folder: Path | None = RESULTS) -> None:
    """Append a result to `<name>.jsonl` in the folder, and print it as the run's last line; None = only print."""
    line = json.dumps(result)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line, flush=True)


def read_result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The newest result of a benchmark.

    Raises:
        FileNotFoundError: it has none.
    """
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def read_results(names: Iterable[str], folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The newest results of those benchmarks that have any."""
    return [read_result(name, folder) for name in names if (folder / f"{name}.jsonl").exists()]
