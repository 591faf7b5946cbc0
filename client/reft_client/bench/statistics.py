"""Percentiles by one method, everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

__all__ = ["Spread", "percentile"]


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Linear interpolation between closest ranks: the value at position `percent/100 * (n - 1)` of a sorted sequence.

    Source: Hyndman and Fan 1996, definition 7; numpy's default.

    Raises:
        ValueError: no values.
    """
    if not ordered:
        raise ValueError("no values have no percentile")
    position = percent / 100 * (len(ordered) - 1)
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


@dataclass(frozen=True)
class Spread:
    """What is reported of many values; all zero where there are none."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Summarize values in any order."""
        ordered = sorted(values)
        if not ordered:
            return cls(0, 0.0, 0.0, 0.0, 0.0, 0.0)
        p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
        return cls(len(ordered), math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])

    def to_json(self) -> dict[str, float]:
        """Field by field, rounded to a microsecond or a millionth."""
        return {name: round(value, 6) for name, value in asdict(self).items()}
