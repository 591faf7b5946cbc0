"""The scheduler's promises: shares, priorities, no starvation, no thrash, early refusal, deadlines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from reft_server.engine.kv_cache import KVCache
from reft_server.engine.kv_memory import BLOCK_SIZE, KVLayout
from reft_server.engine.placement import Placement
from reft_server.engine.prefix_cache import PrefixCache
from reft_server.engine.scheduler import ScheduledChunk, Scheduler
from reft_server.engine.sequence import Sequence
from reft_server.engine.settings import EngineSettings
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams
from reft_server.errors import EngineOverloadedError, RequestTimeoutError

LAYOUT = KVLayout(((1, 2, 2),) * 2, torch.float32, torch.device("cpu"))
PER_TOKEN = LAYOUT.bytes_per_token


def make(*, kv_tokens: int = 100_000, prefix_tokens: int = 0, **settings: Any) -> Scheduler:
    options = EngineSettings(**settings)
    cache = KVCache(LAYOUT, budget_bytes=kv_tokens * PER_TOKEN, max_rows=options.max_num_seqs, max_tokens=4096)
    prefix_cache = PrefixCache(cache.block_memory(prefix_tokens * PER_TOKEN)) if prefix_tokens else None
    return Scheduler(options, Placement(cache, prefix_cache))


def request(num_tokens: int = 8, tenant: str = "", max_tokens: int = 4, first: int = 1, **fields: Any) -> Sequence:
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    tokens = tuple(range(first, first + num_tokens))
    return Sequence(GenerationRequest("test", tokens, sampling, tenant=tenant, **fields), NullStream(), 2)


def step(scheduler: Scheduler) -> list[ScheduledChunk]:
    """Schedule, and pretend that the model ran: every last chunk samples token 0."""
    chunks = scheduler.schedule()
    assert sum(chunk.num_tokens for chunk in chunks) <= scheduler.settings.max_num_batched_tokens
    assert len({chunk.sequence for chunk in chunks}) == len(chunks)
    for chunk in chunks:
        assert chunk.sequence in scheduler.running
        assert chunk.sequence.slot is not None
        assert chunk.start == chunk.sequence.num_computed_tokens
        assert 0 < chunk.num_tokens <= chunk.sequence.slot.capacity - chunk.start
    for chunk in chunks:
        is_last = chunk.is_last
        scheduler.computed(chunk)
        if is_last:
            chunk.sequence.token_ids.append(0)
            if chunk.sequence.num_generated_tokens >= chunk.sequence.sampling.max_tokens:
                scheduler.finish(chunk.sequence)
    return chunks


def run(scheduler: Scheduler, sequences: Iterable[Sequence], on_step: Callable[[int], None] | None = None) -> int:
    """Step until all have finished; the number of steps."""
    waited_for = list(sequences)
    for number in range(2_000):
        if all(one.num_generated_tokens >= one.sampling.max_tokens for one in waited_for):
            return number
        step(scheduler)
        if on_step is not None:
            on_step(number)
    raise AssertionError("some sequence never finished")


def test_decodes_come_before_prompts_within_the_budget() -> None:
    scheduler = make(max_num_batched_tokens=10)
    first, second = request(4, max_tokens=9), request(30)
    scheduler.add(first)
    step(scheduler)
    scheduler.add(second)
    chunks = step(scheduler)
    assert [(chunk.sequence, chunk.num_tokens) for chunk in chunks] == [(first, 1), (second, 9)]
    assert sum(chunk.num_tokens for chunk in step(scheduler)) == 10


def test_tenants_share_equally_whatever_they_send() -> None:
    """One tenant sends ten times as many requests: while both have work, both are given the same."""
    scheduler = make(max_num_seqs=4, max_num_batched_tokens=64)
    flood = [request(8, "flood", 8) for _ in range(100)]
    light = [request(8, "light", 8) for _ in range(10)]
    for one in (*flood, *light):
        scheduler.add(one)
    run(scheduler, light)
    given = {name: sum(s.num_generated_tokens for s in group) for name, group in (("flood", flood), ("light", light))}
    assert given["light"] == 80
    assert given["flood"] <= 80 + 4 * 8


def test_new_tenant_takes_a_place_from_the_one_that_has_them_all() -> None:
    scheduler = make(max_num_seqs=4)
    flood = [request(8, "flood", 500) for _ in range(4)]
    for one in flood:
        scheduler.add(one)
    step(scheduler)
    light = request(8, "light", 2)
    scheduler.add(light)
    assert light in [chunk.sequence for chunk in step(scheduler)]
    assert flood[-1] not in scheduler.running, "the last to come gives way"
    run(scheduler, [light])
    step(scheduler)
    assert flood[-1] in scheduler.running


def test_newcomers_prompt_pauses_the_greedy_for_a_step_and_no_longer() -> None:
    """Each newcomer's first prompt has a step for itself, but endless newcomers stop nobody."""
    scheduler = make(max_num_seqs=8)
    flood = [request(8, "flood", 500) for _ in range(8)]
    for one in flood:
        scheduler.add(one)
    step(scheduler)
    tenants = []
    for number in range(6):
        scheduler.add(request(8, f"new-{number}", 50))
        tenants.append({chunk.sequence.request.tenant for chunk in step(scheduler)})
    assert tenants[0] == {"new-0"}
    assert all("flood" in names for names in tenants[1::2])


def test_tenants_at_their_share_are_left_alone() -> None:
    scheduler = make(max_num_seqs=4)
    for tenant in "aabb":
        scheduler.add(request(8, tenant, 50))
    step(scheduler)
    for tenant in "ab" * 4:
        scheduler.add(request(8, tenant, 50))
    for _ in range(20):
        step(scheduler)
    assert scheduler.num_preemptions == 0


def test_prompts_of_another_tenant_wait_a_step() -> None:
    """A light prompt's step holds no long prompt of another tenant: that would be the light one's latency."""
    scheduler = make(max_num_batched_tokens=1024)
    scheduler.add(request(4000, "heavy", first=1))
    step(scheduler)
    light = request(200, "light", first=7000)
    scheduler.add(light)
    lengths = [{c.sequence.request.tenant: c.num_tokens for c in step(scheduler)} for _ in range(2)]
    assert {"light": 200} in lengths


def test_idle_tenant_earns_no_credit() -> None:
    scheduler = make(max_num_seqs=2)
    early, worker = request(8, "idler", 4), [request(8, "worker", 30) for _ in range(4)]
    scheduler.add(early)
    for one in worker:
        scheduler.add(one)
    run(scheduler, [early, *worker[:2]])
    idler = [request(8, "idler", 30) for _ in range(20)]
    for one in idler:
        scheduler.add(one)
    run(scheduler, worker)
    assert sum(one.num_generated_tokens for one in idler) <= 30 * 4


def test_priority_orders_one_tenant_requests() -> None:
    scheduler = make(max_num_seqs=1)
    running, low, normal, high = request(), request(priority=2), request(), request(priority=-1)
    for one in (running, low, normal, high):
        scheduler.add(one)
    order: list[Sequence] = []

    def note(_: int) -> None:
        order.extend(one for one in scheduler.running if one not in order)

    scheduler.schedule()
    order.append(scheduler.running[0])
    run(scheduler, [low, normal, high, running], note)
    assert order == [high, running, normal, low]


def test_priority_buys_nothing_from_another_tenant() -> None:
    scheduler = make(max_num_seqs=1)
    for one in (request(tenant="modest", max_tokens=50), request(tenant="modest"), request(tenant="modest")):
        scheduler.add(one)
    step(scheduler)
    scheduler.add(request(tenant="loud", priority=-1000))
    first = scheduler.waiting.first()
    assert first is not None
    assert first.request.tenant == "modest", "equally served, and there before"


def test_low_priority_does_not_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level is worth ten seconds of waiting: under endless urgent traffic the low one still gets its turn."""
    now = [0.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: now[0])
    scheduler = make(max_num_seqs=1)
    low = request(priority=3)
    scheduler.add(low)
    for _ in range(100):
        if low in scheduler.running:
            break
        now[0] += 1.0
        scheduler.add(request(max_tokens=1, priority=0))
        if step(scheduler) and low.has_run:
            break
    assert low.has_run
    assert now[0] > 29, "it must have let the urgent ones go first"


def test_stream_of_new_tenants_starves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tenants come faster than they can be served, each with a better claim: waiting counts in the end."""
    now = [0.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: now[0])
    scheduler = make(max_num_seqs=2)
    old = [request(8, "old", 4) for _ in range(6)]
    for one in old:
        scheduler.add(one)

    def newcomers(number: int) -> None:
        now[0] += 0.1
        scheduler.add(request(8, f"new-{number}", 4))

    assert run(scheduler, old, newcomers) < 1000


def test_growth_preempts_the_last_and_the_first_always_goes_on() -> None:
    scheduler = make(kv_tokens=400, max_num_seqs=4)
    sequences = [request(20, max_tokens=150) for _ in range(4)]
    for one in sequences:
        scheduler.add(one)
    progress: list[int] = []

    def note(_: int) -> None:
        progress.append(sequences[0].num_generated_tokens)
        assert scheduler._placement._kv_cache.num_bytes <= 400 * PER_TOKEN

    run(scheduler, sequences, note)
    assert progress[:149] == list(range(2, 151)) or progress[0] == 1
    assert scheduler.num_preemptions > 0
    assert scheduler.num_preemptions <= 3 * 4, "preempted again and again: the cache thrashes"
    assert scheduler._placement._kv_cache.usage == 0


def test_preempted_sequence_resumes_from_its_cached_blocks() -> None:
    scheduler = make(kv_tokens=400, prefix_tokens=2000, max_num_seqs=4)
    sequences = [request(20, max_tokens=150, first=1000 * i) for i in range(4)]
    for one in sequences:
        scheduler.add(one)
    num_computed = Counter[Sequence]()
    while any(one.num_generated_tokens < 150 for one in sequences):
        for chunk in step(scheduler):
            num_computed[chunk.sequence] += chunk.num_tokens
    assert scheduler.num_preemptions > 0
    surplus = sum(num_computed.values()) - 4 * (20 + 149)
    assert surplus <= 16 * scheduler.num_preemptions, "whole blocks must not be computed again"


def test_overflowing_queue_displaces_the_heaviest_tenant() -> None:
    scheduler = make(max_num_seqs=1, max_queue_len=4)
    for one in (request(tenant="flood") for _ in range(5)):
        scheduler.add(one)
    step(scheduler)
    light = request(tenant="light")
    scheduler.add(light)
    assert len(scheduler.waiting) == 5
    [(displaced, error)] = scheduler.displaced()
    assert displaced.request.tenant == "flood"
    assert isinstance(error, EngineOverloadedError)
    scheduler.finish(displaced)
    assert scheduler.displaced() == []
    assert light in scheduler.waiting


def test_deadlines_end_waiting_and_running_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: now[0])
    scheduler = make(max_num_seqs=1, max_queue_time_s=60)
    running, waiting, patient = request(deadline_s=5, max_tokens=50), request(deadline_s=7), request()
    for one in (running, waiting, patient):
        scheduler.add(one)
    step(scheduler)
    assert scheduler.overdue() == []
    now[0] += 6
    assert [(one, type(error)) for one, error in scheduler.overdue()] == [(running, RequestTimeoutError)]
    now[0] += 2
    assert {one for one, _ in scheduler.overdue()} == {running, waiting}
    now[0] += 60
    assert {one: type(error) for one, error in scheduler.overdue()}[patient] is EngineOverloadedError


def test_a_crowd_waits_for_the_first_ones_prefill() -> None:
    scheduler = make(prefix_tokens=4000, max_num_batched_tokens=100)
    crowd = [request(500 + i) for i in range(5)]
    for one in crowd:
        scheduler.add(one)
    num_computed = 0
    while any(not one.num_generated_tokens for one in crowd):
        num_computed += sum(chunk.num_tokens for chunk in step(scheduler))
    assert num_computed < 500 + 5 * 40


def test_waiters_go_on_when_their_leader_is_cancelled() -> None:
    scheduler = make(prefix_tokens=4000, max_num_batched_tokens=100)
    leader, follower = request(500), request(501)
    for one in (leader, follower):
        scheduler.add(one)
    step(scheduler)
    step(scheduler)
    scheduler.finish(leader)
    run(scheduler, [follower])
    assert follower.num_cached_tokens in range(192, 209)


def test_tail_that_is_cached_beside_many_others_is_not_cached_twice() -> None:
    scheduler = make(prefix_tokens=80 * BLOCK_SIZE)
    for first in (1, *range(100, 7_000, 100), 1, *range(10_000, 25_000, 100)):
        sequence = request(8, max_tokens=2, first=first)
        scheduler.add(sequence)
        run(scheduler, [sequence])
    assert not scheduler.running
