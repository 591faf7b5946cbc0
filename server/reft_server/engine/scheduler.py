"""Which tokens of which sequences run in the next step."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

from .kv_cache import KVCache
from .sequence import Sequence
from .settings import EngineSettings

_DECODE_HEADROOM = 64  # tokens reserved past the prompt at admission; more is allocated as it is needed


@dataclass(frozen=True)
class ScheduledChunk:
    """Tokens `[start, start + num_tokens)` of one sequence. `is_last`: the chunk's last row is sampled."""

    sequence: Sequence
    start: int
    num_tokens: int

    @property
    def is_last(self) -> bool:
        return self.start + self.num_tokens == len(self.sequence.token_ids)


class Scheduler:
    """First come, first served; decodes first, then prompts in chunks, within a token budget per step.

    A sequence gets KV room for its prompt and a little more, and grows. When there is no room to grow, the sequence
    that came last gives its slot up and is recomputed later, so the first one always goes on: nothing starves.
    """

    def __init__(self, settings: EngineSettings, kv_cache: KVCache) -> None:
        self._settings = settings
        self._kv_cache = kv_cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> list[ScheduledChunk]:
        """Choose the next step's chunks; empty when there is nothing to do."""
        chunks: list[ScheduledChunk] = []
        budget = self._settings.max_num_batched_tokens
        for sequence in sorted(self.running, key=lambda s: s.num_pending_tokens > 1):
            if budget == 0 or sequence not in self.running or not self._ensure_room(sequence, chunks):
                continue
            budget -= self._append(chunks, sequence, budget)
        while self.waiting and budget and len(self.running) < self._settings.max_num_seqs:
            sequence = self.waiting[0]
            reserve = min(sequence.max_num_tokens, len(sequence.token_ids) + _DECODE_HEADROOM)
            sequence.slot = self._kv_cache.allocate(reserve)
            if sequence.slot is None:
                break
            self.running.append(self.waiting.popleft())
            budget -= self._append(chunks, sequence, budget)
        return chunks

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and free its KV."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release(sequence)

    def overdue(self) -> list[Sequence]:
        """Sequences that never ran and have waited longer than the queue-time limit."""
        oldest = time.monotonic() - self._settings.max_queue_time_s
        return [s for s in self.waiting if s.arrival_time_s < oldest and not s.num_generated_tokens]

    @staticmethod
    def _append(chunks: list[ScheduledChunk], sequence: Sequence, budget: int) -> int:
        num_tokens = min(sequence.num_pending_tokens, budget)
        chunks.append(ScheduledChunk(sequence, sequence.num_computed_tokens, num_tokens))
        return num_tokens

    def _ensure_room(self, sequence: Sequence, chunks: list[ScheduledChunk]) -> bool:
        """Make the slot large enough for every known token, preempting later arrivals; False if preempted itself."""
        assert sequence.slot is not None  # running sequences have one
        num_tokens = len(sequence.token_ids)
        while sequence.slot.capacity < num_tokens:
            reserve = min(sequence.max_num_tokens, num_tokens + _DECODE_HEADROOM)
            larger = self._kv_cache.grow(sequence.slot, reserve, sequence.num_computed_tokens)
            if larger is not None:
                sequence.slot = larger
                return True
            victim = self.running[-1]
            self._preempt(victim)
            chunks[:] = [chunk for chunk in chunks if chunk.sequence is not victim]
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed_tokens = 0
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        if sequence.slot is not None:
            self._kv_cache.free(sequence.slot)
            sequence.slot = None
