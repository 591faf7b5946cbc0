"""Lengths and pauses: what is parsed, and the statistics of what is drawn."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from reft_client import InvalidArgumentError
from reft_client.bench.distributions import Distribution

NUM_DRAWS = 20_000


@pytest.mark.parametrize(
    ("text", "mean", "deviation"),
    [
        ("7", 7, 0),
        ("uniform:2:6", 4, 4 / math.sqrt(12)),
        ("normal:100:10", 100, 10),
        ("exponential:3", 3, 3),
        ("lognormal:100:0.5", 100 * math.exp(0.125), 100 * math.exp(0.125) * math.sqrt(math.exp(0.25) - 1)),
    ],
)
def test_distribution_has_its_mean_and_deviation(text: str, mean: float, deviation: float) -> None:
    rng = random.Random(1)
    distribution = Distribution.parse(text)
    values = [distribution.sample(rng) for _ in range(NUM_DRAWS)]
    assert statistics.fmean(values) == pytest.approx(mean, abs=5 * deviation / math.sqrt(NUM_DRAWS))
    assert statistics.pstdev(values) == pytest.approx(deviation, rel=0.05)


def test_distribution_counts_are_whole_and_reach_both_bounds() -> None:
    rng = random.Random(1)
    distribution = Distribution.parse("uniform:2:5")
    assert {distribution.sample_count(rng) for _ in range(1000)} == {2, 3, 4, 5}
    assert Distribution.parse("0").sample_count(rng) == 1
    assert {Distribution.parse("normal:1:5").sample_count(rng) >= 1 for _ in range(1000)} == {True}


def test_distribution_is_repeatable() -> None:
    distribution = Distribution.parse("normal:100:10")
    assert distribution.sample(random.Random(3)) == distribution.sample(random.Random(3))


@pytest.mark.parametrize(
    "text", ["", "x", "uniform:1", "uniform:5:1", "normal:1", "zipf:1", "-1", "nan", "inf", "normal:1:2:3", "1:2"]
)
def test_distribution_refuses_what_it_is_not(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Distribution.parse(text)
