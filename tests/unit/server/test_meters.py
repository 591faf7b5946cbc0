"""Rates: what a bucket gives out over time, and what a tenant's limits make of it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_server.errors import RateLimitError
from reft_server.tenants import TenantDirectory, TenantLimits
from reft_server.tenants.meters import Bucket, Meters, _duration


def test_bucket_gives_a_minutes_worth_at_once_and_then_its_rate() -> None:
    bucket = Bucket(60, now=0.0)
    bucket.charge(60, 0.0)
    assert bucket.wait_s(1, 0.0) == 1.0
    assert bucket.wait_s(1, 1.0) == 0.0
    assert (bucket.remaining(10.5), bucket.full_in_s(10.0)) == (10, 50.0)
    assert bucket.remaining(1e9) == 60


def test_debt_is_waited_for_before_the_next_take() -> None:
    bucket = Bucket(60, now=0.0)
    bucket.charge(90, 0.0)
    assert bucket.remaining(0.0) == 0
    assert bucket.wait_s(1, 0.0) == 31.0


def test_amount_larger_than_the_bucket_waits_until_it_is_full() -> None:
    bucket = Bucket(60, now=0.0)
    assert bucket.wait_s(1000, 0.0) == 0.0
    bucket.charge(1, 0.0)
    assert bucket.wait_s(1000, 0.0) == 1.0


def test_limit_of_zero_gives_nothing_ever() -> None:
    assert Bucket(0, now=0.0).wait_s(1, 1e9) == math.inf


@given(st.integers(1, 1000), st.lists(st.tuples(st.floats(0, 100), st.integers(1, 500)), max_size=50))
def test_bucket_never_gives_more_than_its_limit_over_time(limit: int, takes: list[tuple[float, int]]) -> None:
    bucket, now, given_out, largest = Bucket(limit, 0.0), 0.0, 0, 0
    for pause_s, amount in takes:
        now += pause_s
        if not bucket.wait_s(amount, now):
            bucket.charge(amount, now)
            given_out, largest = given_out + amount, max(largest, amount)
    assert given_out <= limit + now * limit / 60 + largest + 1e-6


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.12, "120ms"), (1, "1s"), (6.2, "7s"), (360, "6m0s"), (61, "1m1s")]
)
def test_duration_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert _duration(seconds) == text


def test_new_limit_holds_at_once_and_what_was_used_stays_used() -> None:
    directory = TenantDirectory.in_memory(TenantLimits(requests_per_minute=2))
    directory.open()
    directory.create_tenant("acme")
    meter = Meters(directory).of("acme")
    meter.take_request()
    meter.take_request()
    with pytest.raises(RateLimitError) as caught:
        meter.take_request()
    assert 29 < caught.value.retry_after_s <= 30
    directory.set_limits("acme", TenantLimits(requests_per_minute=3))
    meter.take_request()
    with pytest.raises(RateLimitError):
        meter.take_request()
    directory.close()


def test_tenants_do_not_use_up_each_others_rates() -> None:
    meters = Meters(TenantDirectory.in_memory(TenantLimits(requests_per_minute=1, max_concurrent_requests=1)))
    meters.of("acme").take_request()
    with meters.of("acme").running():
        meters.of("bank").take_request()
        with meters.of("bank").running(), pytest.raises(RateLimitError), meters.of("acme").running():
            pass
    with meters.of("acme").running():
        pass
