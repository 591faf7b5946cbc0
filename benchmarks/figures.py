"""Medians and ranges, and the files that keep them."""

from __future__ import annotations

import json
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


def write_result(name: str, result: dict[str, Any]) -> None:
    """Keep a result under `benchmarks/results/`, and print it as the run's last line."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result), flush=True)
