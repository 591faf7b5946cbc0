"""Which tokens of which sequences run in the next step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from reft_server.errors import EngineOverloadedError, ReftError, RequestTimeoutError

from .placement import Placement
from .prompt_scores import MAX_ROWS
from .sequence import Sequence
from .settings import EngineSettings
from .waiting import WaitingQueue

_DECODE_COST = 2.0  # virtual tokens that a generated token counts for; a prompt token counts for 1
_EXCLUSIVE_PREFILL = 128  # prompt tokens of one tenant in a step, after which other tenants' prompts wait
_YIELDING_PREFILL = 64  # prompt tokens in a step of a tenant that was served more than another one
_HOLD_STEPS = 64  # after a preemption for want of KV nobody is admitted until a sequence ends, or for so many steps
_order = attrgetter("order")


class ScheduledChunk(NamedTuple):
    """Tokens `[start, start + num_tokens)` of one sequence."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def is_last(self) -> bool:
        """Nothing that is known is left to compute after it."""
        return self.start + self.num_tokens == len(self.sequence.token_ids)

    @property
    def is_sampled(self) -> bool:
        """Its last row's logits give the next token."""
        return self.sequence.is_generating and self.is_last


@dataclass
class _Step:
    """A step in the making."""

    budget: int
    chunks: list[ScheduledChunk] = field(default_factory=list)
    prefill_tenant: str | None = None
    num_prefill_tokens: int = 0
    num_scored_rows: int = 0

    def prefill_room(self, sequence: Sequence, waiting: WaitingQueue) -> int:
        """How many prompt tokens of this sequence the step may hold.

        Bounds are the budget, the tenant that this step's prompts are from, and who may come meanwhile.
        """
        tenant = sequence.request.tenant
        if self.prefill_tenant not in (None, tenant) and self.num_prefill_tokens >= _EXCLUSIVE_PREFILL:
            return 0
        if waiting.is_heavier_than_another(tenant):
            return max(min(self.budget, _YIELDING_PREFILL - self.num_prefill_tokens), 0)
        return self.budget

    def score_room(self, sequence: Sequence) -> int:
        """How many tokens of this sequence the step may hold, for the logits that its prompt's scores need."""
        scores = sequence.prompt_scores
        if scores is None:
            return self.budget
        room = scores.max_tokens(sequence.num_computed_tokens, MAX_ROWS - self.num_scored_rows)
        return self.budget if room is None else room

    def drop(self, sequence: Sequence) -> None:
        self.chunks = [chunk for chunk in self.chunks if chunk.sequence is not sequence]


class Scheduler:
    """Decodes first, then prompts in chunks, within a token budget per step; tenants share fairly.

    * Prompts are taken in the order of `WaitingQueue`: the least served tenant first, then priority and arrival.
      The first prompt of a tenant that has nothing running pauses those above their share for a step, every other
      step at most. A step takes prompts of one tenant, and few of one that was served more than another: whoever
      comes next waits for the step that runs.
    * A tenant below its share of places takes one from a tenant above its own, by preemption.
    * A sequence gets KV room for what is known of it and a little more, and grows. Where there is no room, the one
      that comes last in order gives its slot up and is computed again later, from cached blocks where it can.
    * The running sequence that is first in order is never preempted by growth, so there is always progress.
    * The step after one in flight is chosen as if that one had ended, except that nobody is preempted for it.
    """

    def __init__(self, settings: EngineSettings, placement: Placement) -> None:
        self.settings = settings
        self._placement = placement
        self._num_held_steps = 0
        self._has_paused = False
        self._may_preempt = True
        self._wants_preemption = False
        self.waiting = WaitingQueue()
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    def add(self, sequence: Sequence) -> None:
        """A new sequence waits for its turn."""
        self.waiting.enter(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the next step's chunks; empty when there is nothing to do."""
        step = _Step(self.settings.max_num_batched_tokens)
        self._wants_preemption = False
        self._num_held_steps = max(self._num_held_steps - 1, 0)
        first = None if self._has_paused else self._first_of_newcomer(step)
        self._has_paused = first is not None
        self._decode(step, first)
        self._prefill(step)
        return step.chunks

    def schedule_ahead(self) -> list[ScheduledChunk]:
        """Choose the step after the one in flight; empty where somebody would have to be preempted first."""
        if self._wants_preemption:
            return []
        self._may_preempt = False
        try:
            return self.schedule()
        finally:
            self._may_preempt = True

    def computed(self, chunk: ScheduledChunk) -> None:
        """A chunk's K and V are in the cache, or will be before any later step reads them."""
        chunk.sequence.num_computed_tokens += chunk.num_tokens
        if chunk.start < chunk.sequence.prompt_length:
            self._placement.keep_prompt(chunk.sequence)

    def finish(self, sequence: Sequence, *, is_sound: bool = True) -> None:
        """Forget a sequence, waiting or running, and free its KV.

        Args:
            is_sound: False after a failure: nothing of it is kept, and its slot is scrubbed.
        """
        if sequence in self.running:
            self.running.remove(sequence)
            self._num_held_steps = 0
        sequence.is_finished = True
        sequence.expect_nothing()
        self.waiting.leave(sequence)
        self._placement.release(sequence, is_sound=is_sound, with_tail=True)

    def overdue(self) -> list[tuple[Sequence, ReftError]]:
        """Sequences past their deadline, or that never ran and have waited longer than the queue-time limit."""
        now = time.monotonic()
        limit = self.settings.max_queue_time_s
        found: list[tuple[Sequence, ReftError]] = []
        for sequence in (*self.waiting, *self.running):
            age = now - sequence.arrival_time_s
            deadline = sequence.request.deadline_s
            if deadline is not None and age > deadline:
                found.append((sequence, RequestTimeoutError(f"the request's deadline of {deadline:g} s has passed")))
            elif age > limit and not sequence.has_run:
                found.append((sequence, EngineOverloadedError(f"the request waited {limit:g} s in the queue")))
        return found

    def displaced(self) -> list[tuple[Sequence, ReftError]]:
        """Who gives way when the queue has run over: the last of the tenant that fills it most."""
        if len(self.waiting) <= self.settings.max_queue_len:
            return []
        num_surplus = sum(not one.has_run for one in self.waiting) - self.settings.max_queue_len
        error = EngineOverloadedError("the queue is full, and this tenant fills most of it; try again in a moment")
        return [(sequence, error) for sequence in self.waiting.heaviest(num_surplus)]

    def _first_of_newcomer(self, step: _Step) -> Sequence | None:
        """Schedule the next prompt if it fits the step and its tenant has nothing running, while another has plenty.

        The tenants with more than their share of places then pause for this step: their tokens would be in its time.
        """
        sequence = self.waiting.first()
        if sequence is None or self.waiting.num_running.get(sequence.request.tenant, 0) or self._num_held_steps:
            return None
        has_greedy = any(self._is_greedy(tenant) for tenant in self.waiting.num_running)
        if not has_greedy or len(sequence.token_ids) > step.budget or self._waits_for_another(sequence):
            return None
        if not self._admit(sequence, step):
            return None
        self._append(step, sequence, step.budget)
        return sequence

    def _is_greedy(self, tenant: str) -> bool:
        """Whether a tenant has more than its share of all places."""
        return self.waiting.num_running[tenant] * self.waiting.num_active_tenants > self.settings.max_num_seqs

    def _decode(self, step: _Step, newcomer: Sequence | None) -> None:
        for sequence in sorted([one for one in self.running if one.is_decoding], key=_order):
            if sequence is newcomer:
                continue
            is_paused = newcomer is not None and self._is_greedy(sequence.request.tenant)
            is_running = sequence.slot is not None  # not preempted for one before it
            if step.budget > 0 and not is_paused and is_running and self._ensure_room(sequence, step):
                self._append(step, sequence, 1)

    def _prefill(self, step: _Step) -> None:
        """Prompts in the order of their rank, those that run and those that wait alike."""
        chosen = {chunk.sequence for chunk in step.chunks}
        running = [one for one in self.running if one.num_pending_tokens > 1 and one not in chosen]
        may_admit = not self._num_held_steps or not self.running
        skipped: set[Sequence] = set()
        while step.budget > 0:
            waiting = self.waiting.first(skipped) if may_admit else None
            candidates = running if waiting is None else [*running, waiting]
            sequence = min(candidates, key=self.waiting.rank, default=None)
            room = 0 if sequence is None else step.prefill_room(sequence, self.waiting)
            if sequence is None or not room:
                return
            if sequence is not waiting:
                running.remove(sequence)
                if step.score_room(sequence) and sequence in self.running and self._ensure_room(sequence, step):
                    self._append(step, sequence, room)
            elif not step.score_room(sequence) or self._waits_for_another(sequence):
                skipped.add(sequence)
            elif self._admit(sequence, step):
                self._append(step, sequence, room)
            else:
                may_admit = False

    def _append(self, step: _Step, sequence: Sequence, room: int) -> None:
        start, num_pending = sequence.num_computed_tokens, sequence.num_pending_tokens
        num_tokens = min(num_pending, room, step.score_room(sequence))
        step.chunks.append(ScheduledChunk(sequence, start, num_tokens))
        if sequence.prompt_scores is not None:
            step.num_scored_rows += len(sequence.prompt_scores.positions(start, start + num_tokens))
        step.budget -= num_tokens
        tenant, is_prefill = sequence.request.tenant, num_pending > 1
        if is_prefill:
            step.prefill_tenant = tenant
            step.num_prefill_tokens += num_tokens
        self.waiting.charge(tenant, num_tokens if is_prefill else _DECODE_COST)

    def _admit(self, sequence: Sequence, step: _Step) -> bool:
        """Let a waiting sequence run; False when there is no place or no room for it."""
        if len(self.running) >= self.settings.max_num_seqs and not self._take_place_for(sequence, step):
            return False
        while not self._placement.place(sequence):
            if not self._take_place_for(sequence, step):
                return False
        if not sequence.has_run:
            sequence.has_run = True
            sequence.queue_time_s = time.monotonic() - sequence.arrival_time_s
        self.waiting.admit(sequence)
        self.running.append(sequence)
        return True

    def _waits_for_another(self, sequence: Sequence) -> bool:
        """Whether a running sequence is about to compute a good part of this one's prompt."""
        leader, num_tokens = sequence.waits_for or (None, 0)
        if leader is None or leader not in self.running or leader.num_computed_tokens >= num_tokens:
            sequence.waits_for = self._placement.leader(sequence, self.running)
        return sequence.waits_for is not None

    def _take_place_for(self, sequence: Sequence, step: _Step) -> bool:
        """Preempt the last sequence of a tenant above its share, for one whose tenant stays within its own."""
        num_running = self.waiting.num_running
        if num_running[sequence.request.tenant] + 1 > len(self.running) / self.waiting.num_active_tenants:
            return False
        if not self._may_preempt:
            self._wants_preemption = True
            return False
        greediest = max(num_running, key=lambda name: num_running[name])  # where one has less, another has more
        self._preempt(max((one for one in self.running if one.request.tenant == greediest), key=_order), step)
        return True

    def _ensure_room(self, sequence: Sequence, step: _Step) -> bool:
        """Make room for every known token, preempting later sequences; False if preempted itself."""
        while not self._placement.grow(sequence):
            if not self._may_preempt:
                self._wants_preemption = True
                return False
            victim = max(self.running, key=_order)
            self._num_held_steps = _HOLD_STEPS
            self._preempt(victim, step)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence, step: _Step) -> None:
        self.num_preemptions += 1
        step.drop(sequence)
        self.running.remove(sequence)
        self._placement.release(sequence)
        self.waiting.take_back(sequence)
