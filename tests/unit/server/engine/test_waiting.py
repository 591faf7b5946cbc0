"""The order of those who wait, tenant by tenant, and what is remembered of tenants that have gone."""

from __future__ import annotations

import pytest

from reft_server.engine.sequence import Sequence
from reft_server.engine.waiting import WaitingQueue
from tests.unit.server.engine.test_scheduler import request


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: clock[0])
    return clock


def enter(queue: WaitingQueue, *tenants: str) -> list[Sequence]:
    sequences = [request(tenant=tenant) for tenant in tenants]
    for one in sequences:
        queue.enter(one)
    return sequences


def ranked(queue: WaitingQueue) -> list[str]:
    return [one.request.tenant for one in sorted(queue, key=queue.rank)]


def test_tenant_that_comes_starts_with_the_least_served_active_one() -> None:
    queue = WaitingQueue()
    _, gone, _ = enter(queue, "most", "gone", "least")
    queue.charge("most", 1000)
    queue.charge("least", 10)
    queue.leave(gone)
    enter(queue, "gone", "new")
    assert ranked(queue) == ["least", "gone", "new", "most"]
    queue.charge("least", 1)
    assert ranked(queue) == ["gone", "new", "least", "most"]


def test_tenant_that_has_waited_for_ten_seconds_and_has_nothing_running_goes_first(now: list[float]) -> None:
    queue = WaitingQueue()
    running, _, _ = enter(queue, "served", "served", "starved")
    queue.admit(running)
    queue.charge("starved", 1000)
    queue.charge("served", 500)
    now[0] += 9.9
    enter(queue, "new")
    assert ranked(queue) == ["served", "new", "starved"]
    now[0] += 0.2
    assert ranked(queue) == ["starved", "served", "new"]


def test_only_a_tenant_that_would_still_have_fewer_waiting_is_lighter() -> None:
    queue = WaitingQueue()
    enter(queue, "heavy", "heavy", "light")
    assert not queue.is_lighter_than_another("light", 1)
    assert queue.is_lighter_than_another("new", 1)
    assert not queue.is_lighter_than_another("heavy", 1)


def test_heaviest_are_the_last_of_those_that_have_most_and_never_ran() -> None:
    queue = WaitingQueue()
    preempted = enter(queue, "preempted", "preempted", "preempted")
    for one in preempted:
        one.has_run = True
    first, second, third = enter(queue, "flood", "flood", "light")
    assert queue.heaviest(1) == [second]
    assert set(queue.heaviest(3)) == {first, second, third}


def test_tenants_that_have_gone_are_forgotten_and_those_that_wait_are_not(now: list[float]) -> None:
    queue = WaitingQueue()
    for running in enter(queue, "stays", "stays", "other", "other")[::2]:
        queue.admit(running)
    queue.charge("stays", 50)
    for number in range(1300):
        now[0] += 0.02
        [passing] = enter(queue, f"tenant-{number}")
        queue.admit(passing)
        queue.charge(passing.request.tenant, 10)
        assert not queue.is_heavier_than_another("other")
        queue.leave(passing)
    assert max(len(value) for value in vars(queue).values() if hasattr(value, "__len__")) <= 1100
    assert queue.is_heavier_than_another("stays")
    assert ranked(queue) == ["other", "stays"]
