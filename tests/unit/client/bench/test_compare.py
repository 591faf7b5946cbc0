"""Ratios of two runs and their intervals."""

from __future__ import annotations

import random
from statistics import fmean

import pytest

from reft_client.bench.compare import ratio_of


def exponentials(seed: int, mean: float, count: int) -> list[float]:
    rng = random.Random(seed)
    return [rng.expovariate(1 / mean) for _ in range(count)]


def correlated(seed: int, count: int) -> list[float]:
    """Latencies of a queue: each depends on the one before."""
    rng = random.Random(seed)
    values, level = [], 0.0
    for _ in range(count):
        level = 0.8 * level + rng.normalvariate(0.0, 1.0)
        values.append(20.0 + level)
    return values


@pytest.mark.parametrize("make", ["independent", "correlated"])
def test_ratio_interval_covers_the_truth(make: str) -> None:
    """Two runs of the same distribution: the true ratio is 1, outside about one interval in twenty."""
    num_covered = 0
    for seed in range(20):
        if make == "independent":
            first, second = exponentials(seed, 1.0, 100), exponentials(seed + 100, 1.0, 100)
        else:
            first, second = correlated(seed, 200), correlated(seed + 100, 200)
        ratio = ratio_of("x", first, second, fmean)
        assert ratio is not None
        num_covered += ratio.low <= 1.0 <= ratio.high
    assert num_covered >= 16


def test_ratio_interval_excludes_one_where_the_runs_differ() -> None:
    ratio = ratio_of("x", exponentials(0, 1.0, 300), exponentials(1, 2.0, 300), fmean)
    assert ratio is not None
    assert 1.0 < ratio.low < ratio.ratio < ratio.high
    assert ratio == ratio_of("x", exponentials(0, 1.0, 300), exponentials(1, 2.0, 300), fmean)


def test_ratio_of_nothing_is_left_out() -> None:
    assert ratio_of("x", [], [1.0], fmean) is None
    assert ratio_of("x", [0.0], [1.0], fmean) is None
    one = ratio_of("x", [2.0], [3.0], fmean)
    assert one is not None
    assert (one.ratio, one.low, one.high) == (1.5, 1.5, 1.5)
