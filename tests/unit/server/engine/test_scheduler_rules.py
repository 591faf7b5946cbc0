"""The scheduler's rules one by one: what a step may hold, who is held back and for how long."""

from __future__ import annotations

import pytest

from reft_server.engine.prompt_scores import MAX_ROWS
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams
from tests.unit.server.engine.test_scheduler import make, request, run, step


def scored(num_tokens: int, priority: int = 0) -> Sequence:
    """A sequence whose prompt's own logprobs are wanted."""
    sampling = SamplingParams(max_tokens=4, temperature=0.0, num_prompt_logprobs=0)
    return Sequence(GenerationRequest("test", (1,) * num_tokens, sampling, priority=priority), NullStream(), 2)


def num_tokens_of(chunks: list[ScheduledChunk], tenant: str) -> int:
    return sum(chunk.num_tokens for chunk in chunks if chunk.sequence.request.tenant == tenant)


@pytest.mark.parametrize(("num_tokens", "tenants"), [(300, {"a"}), (100, {"a", "b"})])
def test_long_prompts_of_two_tenants_share_no_step(num_tokens: int, tenants: set[str]) -> None:
    scheduler = make(max_num_batched_tokens=1024)
    for tenant in "ab":
        scheduler.add(request(num_tokens, tenant))
    assert {chunk.sequence.request.tenant for chunk in step(scheduler)} == tenants


def test_tenant_that_was_served_more_than_another_gets_few_prompt_tokens_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All its prompts together, while the other has requests and for ten seconds after; then a whole step again."""
    now = [100.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: now[0])
    scheduler = make(max_num_batched_tokens=1024)
    light = request(8, "light", max_tokens=4)
    scheduler.add(light)
    for num_tokens in (500, 40, 40, 900, 900, 900):
        scheduler.add(request(num_tokens, "heavy", max_tokens=1))
    given = [num_tokens_of(step(scheduler), "heavy") for _ in range(4)]
    assert given == [500, 64, 64, 64]
    run(scheduler, [light])
    now[0] += 9
    assert num_tokens_of(step(scheduler), "heavy") == 64
    now[0] += 2
    assert num_tokens_of(step(scheduler), "heavy") > 64


def test_step_computes_a_bounded_number_of_rows_for_prompt_logprobs() -> None:
    scheduler = make(max_num_batched_tokens=2048)

    def rows_of_a_step() -> dict[Sequence, int]:
        chunks = scheduler.schedule()
        assert all(chunk.num_tokens for chunk in chunks)
        rows = {}
        for chunk in chunks:
            scores = chunk.sequence.prompt_scores
            assert scores is not None
            rows[chunk.sequence] = len(scores.positions(chunk.start, chunk.start + chunk.num_tokens))
            scheduler.computed(chunk)
        return rows

    first, second, urgent = scored(200), scored(200), scored(600, priority=-5)
    scheduler.add(first)
    scheduler.add(second)
    assert rows_of_a_step() == {first: 199, second: MAX_ROWS - 199}
    scheduler.finish(first)
    scheduler.add(urgent)
    assert rows_of_a_step() == {urgent: MAX_ROWS}, "no rows are left for the prompt that runs already"


@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("tenant", ["", "newcomer"])
def test_nobody_is_admitted_for_a_while_after_a_preemption_for_room(tenant: str, ends: bool) -> None:
    """Whoever comes: the room that was made is for those that run. A sequence that ends lifts it at once."""
    scheduler = make(kv_tokens=600, max_num_seqs=4)
    for _ in range(4):
        scheduler.add(request(20, max_tokens=350))
    while not scheduler.num_preemptions:
        step(scheduler)
    small = request(8, tenant, max_tokens=2, priority=-100)
    scheduler.add(small)
    if ends:
        scheduler.finish(scheduler.running[-1])
    num_steps = 0
    while not small.has_run:
        step(scheduler)
        num_steps += 1
    assert num_steps == (1 if ends else 64)


def test_a_step_ahead_preempts_nobody_and_then_waits_until_it_may() -> None:
    """No place for a newcomer, then no room to grow: a step without them, then none, until the one in flight ends."""
    scheduler = make(max_num_seqs=2)
    for _ in range(2):
        scheduler.add(request(8, "flood", 500))
    step(scheduler)
    light = request(8, "light")
    scheduler.add(light)
    ahead = scheduler.schedule_ahead()
    assert light not in [chunk.sequence for chunk in ahead]
    assert scheduler.schedule_ahead() == []
    assert scheduler.num_preemptions == 0
    assert light in [chunk.sequence for chunk in scheduler.schedule()]
    assert scheduler.num_preemptions == 1


def test_who_has_run_is_not_overdue_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: now[0])
    scheduler = make(max_num_seqs=2, max_queue_time_s=60)
    for _ in range(2):
        scheduler.add(request(8, "flood", 500))
    step(scheduler)
    light = request(8, "light", 500)
    scheduler.add(light)
    step(scheduler)
    assert scheduler.num_preemptions == 1
    now[0] += 61
    assert scheduler.overdue() == []


def test_preempted_requests_do_not_fill_the_queue() -> None:
    scheduler = make(max_num_seqs=2, max_queue_len=1)
    for _ in range(2):
        scheduler.add(request(8, "flood", 500))
    step(scheduler)
    scheduler.add(request(8, "light", 500))
    step(scheduler)
    assert [one.has_run for one in scheduler.waiting] == [True]
    scheduler.add(request(8, "flood"))
    assert scheduler.displaced() == []
    second = request(8, "flood")
    scheduler.add(second)
    assert [one for one, _ in scheduler.displaced()] == [second], "the last one that never ran"


def test_newcomer_whose_prompt_fits_no_step_pauses_nobody() -> None:
    scheduler = make(max_num_seqs=8, max_num_batched_tokens=64)
    for _ in range(8):
        scheduler.add(request(8, "flood", 500))
    step(scheduler)
    scheduler.add(request(65, "light"))
    assert num_tokens_of(step(scheduler), "flood") > 0


def test_tenant_with_exactly_its_share_is_not_paused() -> None:
    scheduler = make(max_num_seqs=4)
    for _ in range(2):
        scheduler.add(request(8, "a", 500))
    step(scheduler)
    scheduler.add(request(8, "b"))
    chunks = step(scheduler)
    assert (num_tokens_of(chunks, "a"), num_tokens_of(chunks, "b")) == (2, 8)


def test_newcomer_with_a_prompt_of_one_token_has_one_row() -> None:
    scheduler = make(max_num_seqs=8)
    for _ in range(8):
        scheduler.add(request(8, "flood", 500))
    step(scheduler)
    scheduler.add(request(1, "light"))
    assert num_tokens_of(step(scheduler), "light") == 1


def test_newcomer_gets_room_from_the_tenant_that_has_it_all() -> None:
    """Places are free, K and V are not."""
    scheduler = make(kv_tokens=400, max_num_seqs=8)
    for _ in range(4):
        scheduler.add(request(20, "flood", 50))
    step(scheduler)
    num_running = len(scheduler.running)
    light = request(20, "light", 50)
    scheduler.add(light)
    step(scheduler)
    assert light in scheduler.running
    assert (num_running, len(scheduler.running)) == (4, 4)


def test_prompt_that_loses_its_place_to_another_one_is_not_in_their_step() -> None:
    scheduler = make(max_num_seqs=2, max_num_batched_tokens=100)
    last = request(300, "flood")
    scheduler.add(last)
    step(scheduler)
    first = request(105, "flood", priority=-100)
    scheduler.add(first)
    step(scheduler)
    light = request(8, "light")
    scheduler.add(light)
    assert [(chunk.sequence, chunk.num_tokens) for chunk in step(scheduler)] == [(light, 8), (first, 5)]
    assert last not in scheduler.running


def test_only_sequence_that_has_no_room_to_grow_comes_back_at_once() -> None:
    """It gives its slot up for a larger one: nobody else runs, so nobody is waited for."""
    scheduler = make(kv_tokens=256)
    sequence = request(20, max_tokens=150)
    scheduler.add(sequence)
    num_steps = run(scheduler, [sequence])
    assert scheduler.num_preemptions == 1
    assert num_steps <= 152


def test_time_in_the_queue_is_that_until_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("reft_server.engine.sequence.time.monotonic", lambda: now[0])
    scheduler = make(kv_tokens=256)
    sequence = request(20, max_tokens=150)
    scheduler.add(sequence)
    now[0] += 3
    run(scheduler, [sequence], lambda _: now.append(now.pop() + 1))
    assert scheduler.num_preemptions == 1
    assert sequence.queue_time_s == 3


@pytest.mark.parametrize("is_cancelled", [False, True])
def test_follower_waits_for_its_leaders_prompt_and_no_longer(is_cancelled: bool) -> None:
    scheduler = make(prefix_tokens=4000, max_num_batched_tokens=100)
    leader, follower = request(590, max_tokens=400), request(591)
    scheduler.add(leader)
    scheduler.add(follower)
    for _ in range(6):
        step(scheduler)
    assert leader.num_generated_tokens == 1
    assert not follower.has_run
    if is_cancelled:
        scheduler.finish(leader)
    step(scheduler)
    assert follower.num_cached_tokens in range(576, 591)
