"""What will be sent, session by session; any session can be asked for, in any process, and is the same."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..errors import InvalidArgumentError
from .arrivals import ArrivalProcess, Rate, arrival_times
from .mixes import Mix
from .options import BenchOptions
from .rows import Row, RowMessage, tasks_of
from .vocabulary import Vocabulary

__all__ = ["Plan", "Session", "Turn"]

Prompt = str | tuple[int, ...] | tuple[RowMessage, ...]


@dataclass(frozen=True)
class Turn:
    """What one request asks, besides what was said before in its session."""

    prompt: Prompt
    max_tokens: int


@dataclass(frozen=True)
class Session:
    """Turns that are sent one after the other, each with the answers so far. Most sessions have one turn."""

    index: int
    turns: tuple[Turn, ...]
    intervention: str | None
    tenant: str | None


class Plan:
    """The sessions of a run.

    Prompts, interventions and tenants are drawn from separate streams of the seed: two runs that differ in their mix
    send the same prompts.

    Args:
        rows: of a prompt file or a trace; empty = synthetic prompts.

    Raises:
        InvalidArgumentError: a mix that can't be, or conversations for the completions endpoint.
    """

    def __init__(self, options: BenchOptions, vocabulary: Vocabulary, rows: Sequence[Row] = ()) -> None:
        if options.endpoint != "chat" and any(row.messages is not None for row in rows):
            raise InvalidArgumentError("the file has `messages`: send them with --endpoint chat")
        self._options = options
        self._vocabulary = vocabulary
        self._rows = rows
        self._mix = Mix.parse(options.mix, options.interventions, tasks_of(rows))
        self._tenants = tuple(f"tenant-{number}" for number in range(options.tenants))
        self._tenant_mix = Mix.parse(options.tenant_mix, self._tenants) if self._tenants else Mix("none")
        self._process = ArrivalProcess.parse(options.arrivals)
        self._shared = self._shared_prefixes()

    @property
    def num_sessions(self) -> int | None:
        """How many there are; None = as many as are asked for."""
        wanted = self._options.num_sessions
        if self._options.trace is None:
            return wanted
        return len(self._rows) if wanted is None else min(wanted, len(self._rows))

    def due_times(self) -> Iterator[float]:
        """When each session of an open loop is due, in seconds after the start."""
        options = self._options
        if options.trace is not None:
            first_s = self._rows[0].at_s or 0.0
            return (((row.at_s or 0.0) - first_s) / options.trace_speed for row in self._rows)
        start, end = options.rate or (1.0, 1.0)
        ramp_s = options.warmup_s + (options.duration_s or 0.0) if start != end else 0.0
        return arrival_times(self._process, Rate(start, end, ramp_s), self._rng("arrivals"))

    def session(self, index: int) -> Session:
        """The session of that number."""
        options = self._options
        tenant_rng = self._rng("tenant", index)
        prompt_index = index
        if options.distinct_prompts is not None:
            prompt_index = self._rng("pool", index).randrange(options.distinct_prompts)
        row = self._rows[prompt_index % len(self._rows)] if self._rows else None
        tenant = self._tenant_mix.choose(index, tenant_rng)
        task = None if row is None else row.task
        number = self._tenants.index(tenant) if tenant is not None else 0
        intervention = self._mix.choose(index, self._rng("mix", index), tenant=number, task=task)
        if row is not None and row.intervention is not None:
            intervention = row.intervention or None
        if row is not None and row.user is not None:
            tenant = row.user
        return Session(index, self._turns(self._rng("prompt", prompt_index), row), intervention, tenant)

    def _turns(self, rng: random.Random, row: Row | None) -> tuple[Turn, ...]:
        options = self._options
        prompts: tuple[Prompt, ...]
        if row is None or (row.prompt is None and row.messages is None and row.turns is None):
            num_turns = options.turns.sample_count(rng)
            shared = rng.choice(self._shared) if self._shared else None
            num_tokens = row.prompt_tokens if row is not None else None
            prompts = tuple(self._synthetic(rng, None if i else shared, num_tokens) for i in range(num_turns))
        elif row.messages is not None:
            prompts = (row.messages,)
        else:
            prompts = row.turns or (row.prompt or "",)
        max_tokens = row.max_tokens if row is not None else None
        return tuple(Turn(prompt, max_tokens or options.max_tokens.sample_count(rng)) for prompt in prompts)

    def _synthetic(self, rng: random.Random, shared: Prompt | None, num_tokens: int | None) -> Prompt:
        """A prompt of exactly so many tokens, after the shared ones."""
        num_tokens = num_tokens or self._options.prompt_tokens.sample_count(rng)
        if self._options.token_ids is not None:
            return (*(shared or ()), *rng.choices(range(*self._options.token_ids), k=num_tokens))
        if shared is not None and self._options.shared_prefix is not None:
            # The extra tokens are counted with the shared part, as far as they fit.
            num_over = max(0, self._vocabulary.num_extra_tokens + 1 - self._options.shared_prefix[0])
            return f"{shared} {self._vocabulary.more(max(1, num_tokens - num_over), rng)}"
        return self._vocabulary.text(num_tokens, rng)

    def _shared_prefixes(self) -> tuple[Prompt, ...]:
        if self._options.shared_prefix is None:
            return ()
        num_tokens, num_groups = self._options.shared_prefix
        rngs = [self._rng("shared", group) for group in range(num_groups)]
        if self._options.token_ids is not None:
            return tuple(tuple(rng.choices(range(*self._options.token_ids), k=num_tokens)) for rng in rngs)
        return tuple(self._vocabulary.text(num_tokens, rng) for rng in rngs)

    def _rng(self, stream: str, index: int = 0) -> random.Random:
        return random.Random(f"{self._options.seed}/{stream}/{index}")
