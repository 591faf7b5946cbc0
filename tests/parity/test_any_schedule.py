"""Whatever happens around a request, its tokens are those of the slow reference, run alone.

Hypothesis drives an engine step by step: arrivals of several tenants, shared prefixes, source prompts, cancellations,
sets replaced under their names, requests that fail, with caches small enough to preempt and to evict. A bounded number
of examples runs by default; `pytest tests/parity/test_any_schedule.py --hypothesis-profile=long` runs many.
"""

from __future__ import annotations

import asyncio
import copy
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from reft_interventions import FoldedSet, InterventionSet
from reft_server.engine import EngineSettings, GenerationRequest, LocalEngine, SamplingParams, build_engine
from reft_server.engine.sequence import EXPECTED
from reft_server.errors import EngineStepError
from reft_server.sources import SourceCache
from tests.launching_model import LaunchingOnHost
from tests.parity.harness import Case, Comparison, Expected, Use, reference, to_run
from tests.parity.test_engine_matches_reference import PATHS, prompt
from tests.unit.server.engine.test_engine import poisoned_set

BOUNDED = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
BYTES_PER_TOKEN = 512  # of tests.conftest's tiny llama
SPECS: list[list[dict[str, Any]]] = [
    [{"positions": "l3"}],
    [{"positions": "f2+l2", "layer": 0}, {"positions": "f2+l2", "layer": 2}],
    [{"positions": "all", "formula": "direft"}],
    [{"positions": "generated", "layer": 2}],
    [{"positions": "f20", "layer": 3}],
    [{"positions": "f2+l2", "formula": "dii", "layer": 0}, {"positions": "l20", "formula": "dii", "layer": 2}],
]
ASKS = 5  # of SPECS: it needs a source with every request


class SteppedEngine(LocalEngine):
    """An engine without a thread: the test calls `step`."""

    is_ready = True  # type: ignore[assignment]


@dataclass(eq=False)
class Sent:
    """A request in flight and what came back. It has a stream once its source prompts, if any, have run."""

    case: Case
    is_poisoned: bool
    task: asyncio.Task[None] | None = None
    stream: Any = None
    is_cancelled: bool = False
    token_ids: list[int] = field(default_factory=list)
    error: Exception | None = None

    @property
    def is_preparing(self) -> bool:
        return self.stream is None and not self.is_cancelled

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.stream is not None:
            self.stream.cancel()
        elif self.task is not None:
            self.task.cancel()

    async def read(self) -> None:
        try:
            async for outputs in self.stream:
                self.token_ids += [output.token_id for output in outputs if output.token_id is not None]
        except EngineStepError as error:
            self.error = error


class AnySchedule(RuleBasedStateMachine):
    """One engine; `model`, `make_set` and `path` are set by the test."""

    model: Any
    make_set: Any
    path: str
    comparison: Comparison
    seen: Counter[str]

    @initialize(
        kv_tokens=st.sampled_from([256, 384, 512, 4096]),
        prefix_blocks=st.sampled_from([0, 3, 12, 200]),
        num_batched_tokens=st.sampled_from([1, 5, 16, 33, 512]),
        num_seqs=st.integers(1, 6),
    )
    def start(self, kv_tokens: int, prefix_blocks: int, num_batched_tokens: int, num_seqs: int) -> None:
        options = EngineSettings(
            model_path=self.path,  # type: ignore[arg-type]
            kv_cache_bytes=kv_tokens * BYTES_PER_TOKEN,
            prefix_cache_bytes=prefix_blocks * 16 * BYTES_PER_TOKEN,
            max_num_batched_tokens=num_batched_tokens,
            max_num_seqs=num_seqs,
        )
        if self.path == "launching":
            options = replace(options, model_path="auto")
        built = build_engine(copy.deepcopy(self.model), "tiny", options)
        self.loop = asyncio.new_event_loop()
        self.launching = LaunchingOnHost(built._model, late_share=0.1) if self.path == "launching" else None
        self.engine = SteppedEngine(self.launching or built._model, built.model_info, options, built._sizes)
        self.versions = [0] * len(SPECS)
        self.sources = SourceCache(self.engine, 1 << 16)
        self.sent: list[Sent] = []

    @rule(
        prefix=st.integers(0, 2),
        num_shared=st.sampled_from([0, 1, 15, 16, 17, 33, 48, 70]),
        num_own=st.integers(1, 24),
        own=st.integers(0, 3),
        names=st.lists(st.integers(0, len(SPECS) - 1), max_size=2),
        max_tokens=st.sampled_from([1, 5, 40, 120]),
        tenant=st.sampled_from(["", "a", "b"]),
        priority=st.integers(-1, 1),
        scale=st.sampled_from([1.0, -0.5]),
        subspaces=st.sampled_from([None, (0,), (1, 3)]),
    )
    def submit(
        self,
        prefix: int,
        num_shared: int,
        num_own: int,
        own: int,
        names: list[int],
        max_tokens: int,
        tenant: str,
        priority: int,
        scale: float,
        subspaces: tuple[int, ...] | None,
    ) -> None:
        tokens = (*prompt(num_shared, prefix), *prompt(num_own, 10 + own))
        source = (*prompt(num_shared, (prefix + own) % 3), *prompt(num_own, 11 + own))
        sets = [_set(self.model, self.make_set, name, self.versions[name]) for name in names]
        uses = tuple(
            Use(one, scale, subspaces, source if name == ASKS else None) for name, one in zip(names, sets, strict=True)
        )
        self.seen["sources"] += ASKS in names
        self._send(Case(tokens, uses, max_tokens), (), tenant, priority)

    @rule(num_tokens=st.integers(1, 60))
    def submit_poisoned(self, num_tokens: int) -> None:
        self._send(Case(prompt(num_tokens, 0), (), 5), (poisoned_set(float("nan")),), "", 0, is_poisoned=True)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.engine.step()
        self._deliver()

    @precondition(lambda self: any(not one.is_cancelled for one in self.sent))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.sent if not one.is_cancelled]))
        one.cancel()

    @rule(name=st.integers(0, len(SPECS) - 1))
    def swap(self, name: int) -> None:
        """The next request under this name gets other weights; those in flight keep theirs."""
        self.versions[name] += 1

    @invariant()
    def budgets_hold(self) -> None:
        if hasattr(self, "engine"):
            assert self.engine._kv_cache.num_bytes <= self.engine._settings.kv_cache_bytes
            assert self.engine._prefix_cache.num_bytes <= self.engine._settings.prefix_cache_bytes
            assert all(EXPECTED not in block.content.token_ids for block in self.engine._prefix_cache._recency)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        num_steps = 0
        while self.engine.step() or self.engine._inbox or any(one.is_preparing for one in self.sent):
            num_steps += 1
            assert num_steps < 20_000, "the requests never end"
            self._deliver()
        self._deliver()
        for one in self.sent:
            if one.is_cancelled:
                continue
            assert one.is_poisoned == (one.error is not None), f"poisoned: {one.is_poisoned}, error: {one.error}"
            if not one.is_poisoned:
                self.comparison.check(one.case, one.token_ids, _expected(self.model, one.case))
        stats = self.engine.stats()
        assert (stats.num_requests_running, stats.num_requests_waiting, stats.kv_cache_usage) == (0, 0, 0.0)
        assert not any(block.num_users for block in self.engine._prefix_cache._recency)
        self.seen.update(
            preemptions=stats.num_preemptions,
            evictions=stats.num_prefix_evictions,
            hits=stats.num_prefix_hit_tokens,
            failures=sum(one.error is not None for one in self.sent),
            cancellations=sum(one.is_cancelled for one in self.sent),
            cancelled_sources=sum(one.is_cancelled and one.stream is None for one in self.sent),
        )
        if self.launching is not None:
            self.seen.update(ahead=_num_ahead(self.launching.log), late=self.launching.num_late)
        self.loop.close()

    def _send(
        self, case: Case, applied: tuple[FoldedSet, ...], tenant: str, priority: int, *, is_poisoned: bool = False
    ) -> None:
        # So low a temperature takes the likeliest token, by way of a draw.
        drawn = {"temperature": 1e-6, "top_p": 0.5} if self.launching is not None else {"temperature": 0.0}
        sampling = SamplingParams(max_tokens=case.max_tokens, ignore_eos=True, **drawn)
        request = GenerationRequest("any", case.prompt, sampling, applied, tenant=tenant, priority=priority)
        sent = Sent(case, is_poisoned)
        self.sent.append(sent)

        async def submit() -> None:
            interventions = applied or tuple([await to_run(self.engine, use, self.sources) for use in case.uses])
            sent.stream = self.engine.submit(replace(request, interventions=interventions))
            await sent.read()

        sent.task = self.loop.create_task(submit())
        self._deliver()

    def _deliver(self) -> None:
        async def settle() -> None:
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(settle())


def _num_ahead(log: list[tuple[str, int]]) -> int:
    """Steps that were launched before the one before them was waited for."""
    places = {entry: place for place, entry in enumerate(log)}
    return sum(
        what == "launch" and place < places.get(("wait", number - 1), -1) for (what, number), place in places.items()
    )


@cache
def _set(model: Any, make_set: Any, name: int, version: int) -> InterventionSet:
    made: InterventionSet = make_set(model, *SPECS[name], seed=100 * version + name, stores_source=False)
    return made


@cache
def _expected(model: Any, case: Case) -> Expected:
    return reference(model, case)


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PATHS, "launching"])
def test_any_schedule_gives_the_reference(
    path: str, tiny_model: Any, make_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reft_server.engine.shared_prefixes._FEWEST_BLOCKS", 2)  # prompts here have up to six
    comparison, seen = Comparison(), Counter[str]()
    parts = {"model": tiny_model("llama"), "make_set": staticmethod(make_set), "path": path}
    bounded = BOUNDED if path != "launching" else settings(BOUNDED, max_examples=12)
    scenario = type("Scenario", (AnySchedule,), {**parts, "comparison": comparison, "seen": seen})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        scenario,
        settings=settings() if settings.get_current_profile_name() == "long" else bounded,
    )
    comparison.verdict()
    assert all(seen.values()), f"too tame to prove anything: {seen}"
