"""Percentiles against values worked out by hand, and against the standard library's same definition."""

from __future__ import annotations

import random
import statistics

import pytest

from reft_client.bench.statistics import Spread, percentile


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([5.0], 99, 5.0), ([1, 2], 50, 1.5), ([1, 2, 3, 4], 90, 3.7), ([1, 2, 3, 4], 0, 1), ([1, 2, 3, 4], 100, 4)],
)
def test_percentile_interpolates_between_closest_ranks(values: list[float], percent: float, expected: float) -> None:
    assert percentile(values, percent) == pytest.approx(expected)


def test_percentile_is_definition_seven() -> None:
    rng = random.Random(1)
    values = sorted(rng.expovariate(1) for _ in range(137))
    expected = statistics.quantiles(values, n=100, method="inclusive")
    assert [percentile(values, percent) for percent in range(1, 100)] == pytest.approx(expected)


def test_spread_of_nothing_is_zero_and_a_percentile_of_nothing_is_an_error() -> None:
    assert Spread.of([]) == Spread(0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_spread_takes_values_in_any_order() -> None:
    assert Spread.of([4, 1, 3, 2]).to_json() == {"count": 4, "mean": 2.5, "p50": 2.5, "p90": 3.7, "p99": 3.97, "max": 4}
