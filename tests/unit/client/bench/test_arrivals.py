"""Arrival processes: exact where they are constant, right in mean and variance where they are not."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from reft_client import InvalidArgumentError
from reft_client.bench.arrivals import ArrivalProcess, Rate, arrival_times


def first_times(process: str, rate: Rate, count: int, seed: int = 1) -> list[float]:
    return list(itertools.islice(arrival_times(ArrivalProcess.parse(process), rate, random.Random(seed)), count))


def test_constant_arrivals_begin_at_zero_with_equal_gaps() -> None:
    assert first_times("constant", Rate(4, 4), 5) == pytest.approx([0, 0.25, 0.5, 0.75, 1.0])


@pytest.mark.parametrize(("process", "variation"), [("poisson", 1.0), ("gamma:3", 3.0), ("gamma:0.5", 0.5)])
def test_random_arrivals_have_their_rate_and_variation(process: str, variation: float) -> None:
    times = first_times(process, Rate(10, 10), 40_000)
    gaps = [after - before for before, after in itertools.pairwise([0.0, *times])]
    assert statistics.fmean(gaps) == pytest.approx(0.1, rel=0.06)
    assert statistics.pstdev(gaps) / statistics.fmean(gaps) == pytest.approx(variation, rel=0.05)


def test_random_arrivals_are_repeatable() -> None:
    assert first_times("gamma:2", Rate(3, 3), 50) == first_times("gamma:2", Rate(3, 3), 50)
    assert first_times("gamma:2", Rate(3, 3), 50) != first_times("gamma:2", Rate(3, 3), 50, seed=2)


@pytest.mark.parametrize(("start", "end"), [(1, 20), (20, 1), (0, 10), (5, 5)])
def test_ramp_inverts_the_integral_of_its_rate(start: float, end: float) -> None:
    rate = Rate(start, end, ramp_s=10.0)
    for count in (0, 0.5, 1, 7, 20, 49.9, 104, 300):
        time_s = rate.time_of(count)
        in_ramp = min(time_s, 10.0)
        due = start * in_ramp + (end - start) / 20 * in_ramp**2 + end * (time_s - in_ramp)
        assert due == pytest.approx(count, abs=1e-9)


def test_ramp_never_goes_back() -> None:
    times = first_times("gamma:4", Rate(0, 30, ramp_s=5.0), 500)
    assert times == sorted(times)


@pytest.mark.parametrize("text", ["", "gamma", "gamma:0", "gamma:x", "gamma:-1", "uniform"])
def test_arrival_process_refuses_what_it_is_not(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        ArrivalProcess.parse(text)


@pytest.mark.parametrize("text", ["", "0", "x", "-1", "1:0", "1:x", "inf", "nan"])
def test_rate_refuses_what_it_is_not(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Rate.parse(text)


def test_rate_reads_a_ramp() -> None:
    assert (Rate.parse("5"), Rate.parse("0:20")) == ((5, 5), (0, 20))
