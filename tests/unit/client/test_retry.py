"""The retry policy, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_client import RetryPolicy


def test_policy_doubles_the_delay_up_to_its_limit() -> None:
    policy = RetryPolicy(max_retries=6, initial_delay_s=1, max_delay_s=8, jitter=lambda: 1.0)
    assert [policy.delay_s(i, 0.0) for i in range(7)] == [1, 2, 4, 8, 8, 8, None]


def test_policy_jitter_halves_the_delay_at_most() -> None:
    policy = RetryPolicy(initial_delay_s=1, jitter=lambda: 0.0)
    assert policy.delay_s(0, 0.0) == 0.5


def test_policy_gives_up_when_the_wait_would_end_too_late() -> None:
    policy = RetryPolicy(initial_delay_s=1, max_elapsed_s=10, jitter=lambda: 1.0)
    assert policy.delay_s(0, 9.0) == 1
    assert policy.delay_s(0, 9.1) is None
    assert policy.delay_s(0, 0.0, retry_after_s=30) is None


@pytest.mark.parametrize("retry_after_s", [0.0, 0.2, 3.0, 20.0])
def test_policy_never_waits_less_than_the_server_asked(retry_after_s: float) -> None:
    delay_s = RetryPolicy(jitter=lambda: 0.0).delay_s(0, 0.0, retry_after_s)
    assert delay_s is not None
    assert delay_s >= retry_after_s


@given(st.integers(0, 2000), st.floats(0, 100), st.none() | st.floats(0, 1e9), st.floats(0, 1, exclude_max=True))
def test_policy_stays_within_its_bounds(retries: int, elapsed_s: float, asked_s: float | None, jitter: float) -> None:
    policy = RetryPolicy(max_retries=1500, max_elapsed_s=60, jitter=lambda: jitter)
    delay_s = policy.delay_s(retries, elapsed_s, asked_s)
    if delay_s is not None:
        assert retries < 1500
        assert delay_s > 0
        assert elapsed_s + delay_s <= 60
