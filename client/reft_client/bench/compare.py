"""Two results side by side: ratios, and how sure they are."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from .statistics import percentile
from .tables import Table, format_s

__all__ = ["Ratio", "compare", "comparison_table", "ratio_of"]

Statistic = Callable[[Sequence[float]], float]
NUM_VALUES_DRAWN = 2_000_000
"""What one interval may cost: the number of resamples is this over the number of values, within the bounds below."""
MIN_RESAMPLES, MAX_RESAMPLES = 100, 1000
COVERAGE = 95.0
SEED = 0


@dataclass(frozen=True)
class Ratio:
    """One figure of both runs, and second over first with its 95 % interval."""

    figure: str
    first: float
    second: float
    ratio: float
    low: float
    high: float


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[Ratio]:
    """Every figure that both results have; only answered requests count.

    Args:
        first, second: documents of `reft bench`.
    """
    ratios = []
    for title, name in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("E2E", "e2e_s")):
        values = _answered(first, name), _answered(second, name)
        for label, statistic in (("mean", fmean), ("p50", _p50), ("p90", _p90), ("p99", _p99)):
            ratios.append(ratio_of(f"{title} {label}", *values, statistic))
    for title, name in (("requests/s", "requests_per_s"), ("output tokens/s", "output_tokens_per_s")):
        ratios.append(ratio_of(title, first["series"][name], second["series"][name], fmean))
    return [ratio for ratio in ratios if ratio is not None]


def ratio_of(figure: str, first: Sequence[float], second: Sequence[float], statistic: Statistic) -> Ratio | None:
    """The ratio of a statistic of two runs; None where one has no values, or the first's is zero.

    The interval is a moving-block bootstrap's (Kuensch 1989): blocks of about sqrt(n) consecutive values are drawn with
    replacement, for requests that queue behind each other are no independent samples.
    """
    if not first or not second or statistic(first) == 0:
        return None
    rng = random.Random(SEED)
    resamples = zip(_resample(first, statistic, rng), _resample(second, statistic, rng), strict=False)
    ratios = sorted(b / a for a, b in resamples if a > 0)
    tail = (100.0 - COVERAGE) / 2
    a, b = statistic(first), statistic(second)
    return Ratio(figure, a, b, b / a, percentile(ratios, tail), percentile(ratios, 100.0 - tail))


def comparison_table(ratios: Sequence[Ratio]) -> Table:
    """For people."""
    rows = []
    for item in ratios:
        show = _plain if item.figure.endswith("/s") else format_s
        interval = f"{item.low:.3f} to {item.high:.3f}"
        rows.append((item.figure, show(item.first), show(item.second), f"{item.ratio:.3f}", interval))
    return Table(("figure", "first", "second", "second/first", "95 % interval"), tuple(rows))


def _resample(values: Sequence[float], statistic: Statistic, rng: random.Random) -> Iterator[float]:
    size = max(1, round(math.sqrt(len(values))))
    num_blocks = math.ceil(len(values) / size)
    starts = range(len(values) - size + 1)
    for _ in range(min(MAX_RESAMPLES, max(MIN_RESAMPLES, NUM_VALUES_DRAWN // len(values)))):
        drawn = [value for start in rng.choices(starts, k=num_blocks) for value in values[start : start + size]]
        yield statistic(drawn[: len(values)])


def _answered(document: dict[str, Any], name: str) -> list[float]:
    """One latency of every answered request, in the order in which they were due."""
    columns = document["requests"]
    rows = zip(columns["intended_s"], columns["error"], columns[name], strict=True)
    ordered = sorted(rows, key=lambda row: float(row[0]))
    return [value for _, error, value in ordered if error is None and value is not None]


def _p50(values: Sequence[float]) -> float:
    return percentile(sorted(values), 50)


def _p90(values: Sequence[float]) -> float:
    return percentile(sorted(values), 90)


def _p99(values: Sequence[float]) -> float:
    return percentile(sorted(values), 99)


def _plain(value: float) -> str:
    return f"{value:.4g}"
