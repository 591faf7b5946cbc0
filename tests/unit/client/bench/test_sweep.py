"""Which rates a sweep tries."""

from __future__ import annotations

import pytest

from reft_client.bench.sweep import MAX_HALVINGS, PRECISION, RateSearch


def search(capacity: float, low: float, high: float) -> tuple[float | None, list[float]]:
    """The result, and the rates tried, where rates up to `capacity` meet the objectives."""
    rates = RateSearch(low, high)
    tried: list[float] = []
    while (rate := rates.next()) is not None:
        tried.append(rate)
        rates.note(rate, is_met=rate <= capacity)
    return rates.best, tried


@pytest.mark.parametrize("capacity", [1.0, 3.3, 17.0, 40.0, 63.9])
def test_sweep_finds_the_highest_rate_within_its_precision(capacity: float) -> None:
    best, tried = search(capacity, 1.0, 64.0)
    assert best is not None
    assert best <= capacity <= best * PRECISION
    assert len(tried) <= 11
    assert max(tried) <= 2 * capacity


def test_sweep_goes_down_where_the_first_rate_is_too_high() -> None:
    best, tried = search(3.0, 16.0, 64.0)
    assert tried[:4] == [16, 8, 4, 2]
    assert best is not None
    assert best <= 3.0 <= best * PRECISION


def test_sweep_ends_at_the_bounds() -> None:
    assert search(1000.0, 1.0, 10.0) == (10.0, [1, 2, 4, 8, 10])
    best, tried = search(0.0, 1.0, 10.0)
    assert (best, len(tried)) == (None, 1 + MAX_HALVINGS)
