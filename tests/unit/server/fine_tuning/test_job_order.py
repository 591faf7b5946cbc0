"""Whose job starts next."""

from __future__ import annotations

from collections import Counter

from reft_server.fine_tuning.jobs import next_job
from reft_server.fine_tuning.records import JobRecord


def job(owner: str, created_at: float) -> JobRecord:
    fields = {"model": "base", "name": "x", "training_file": "file-1", "method": {}, "options": {}}
    return JobRecord(id=f"{owner}-{created_at:g}", owner=owner, created_at=created_at, **fields)


def test_jobs_of_one_owner_start_in_order() -> None:
    waiting = [job("acme", 3), job("acme", 1), job("acme", 2)]
    assert next_job(waiting, Counter(acme=1), {"acme": 7}).created_at == 1


def test_owners_take_turns_however_long_one_queue_is() -> None:
    waiting = [job("acme", created_at) for created_at in range(20)] + [job("bank", 50), job("shop", 60)]
    last_starts: dict[str, int] = {}
    order = []
    for number in range(1, 7):
        chosen = next_job(waiting, Counter(), last_starts)
        waiting.remove(chosen)
        last_starts[chosen.owner] = number
        order.append(chosen.id)
    assert order == ["acme-0", "bank-50", "shop-60", "acme-1", "acme-2", "acme-3"]


def test_owner_with_nothing_running_goes_first() -> None:
    waiting = [job("acme", 1), job("bank", 2)]
    assert next_job(waiting, Counter(acme=1), {"bank": 9, "acme": 1}).owner == "bank"
