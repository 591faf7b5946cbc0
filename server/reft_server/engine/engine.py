"""The engine: a thread that steps one model over many sequences."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from dataclasses import replace

import torch

from reft_interventions.folded import FoldedSet
from reft_server.errors import EngineDeadError, EngineOverloadedError, ReftError

from .checks import check_runs
from .device import CacheSizes, use_device
from .edit_plan import EditPlanner
from .jobs import Jobs
from .kv_memory import KVAllocator
from .paged_cache import make_kv_cache
from .placement import Placement
from .prefix_cache import PrefixCache
from .scheduler import Scheduler
from .self_test import run_self_test
from .sequence import Sequence
from .settings import EngineSettings
from .single import Model
from .step_runner import StepRunner
from .stream import QueueStream, publish
from .types import EngineStats, GenerationRequest, ModelInfo, SelfTestReport, TokenOutput
from .validation import validate_request
from .watchdog import Watchdog

logger = logging.getLogger(__name__)

_FIRST_TRIAL_AFTER_S = 0.5
_MAX_TIME_BETWEEN_TRIALS_S = 30.0
"""Of a model that does not run any more: how soon it is tried again, and how seldom in the end."""
_BROKEN_AFTER_S = 60.0
"""A model that has not run for so long will not run again in this process."""


class LocalEngine:
    """`Engine` in a thread of this process: public methods belong to an event loop, the others to that thread.

    Args:
        model: a model path; only the engine's thread runs it once the engine has started.
        sizes: of the caches.
    """

    def __init__(self, model: Model, model_info: ModelInfo, settings: EngineSettings, sizes: CacheSizes) -> None:
        self.model_info = model_info
        self._model = model
        self._settings = settings
        self._sizes = sizes
        self._wake = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._jobs: Jobs[SelfTestReport] = Jobs()
        self._thread: threading.Thread | None = None
        self._watchdog = Watchdog(settings.max_step_time_s, self._on_hang)
        self._is_stopping = False
        self._is_restarting = False
        self._failing_since: float | None = None
        self._has_cancelled = False
        self._edit_planner = EditPlanner.for_layout(model.kv_layout)
        self._counters: Counter[str] = Counter()
        self._kv_cache = self._make_kv_cache(None)
        self._reset()

    @property
    def kv_cache(self) -> KVAllocator:
        """Where running sequences have their K and V."""
        return self._kv_cache

    # --- called from the event loop

    @property
    def is_ready(self) -> bool:
        is_running = self._thread is not None and self._thread.is_alive()
        return is_running and not (self._is_stopping or self._is_restarting or self._watchdog.is_hung)

    @property
    def is_broken(self) -> bool:
        since = self._failing_since
        return since is not None and time.monotonic() - since > _BROKEN_AFTER_S

    def submit(self, request: GenerationRequest) -> QueueStream:
        validate_request(request, self.model_info, self._kv_cache)
        stream = QueueStream(asyncio.get_running_loop(), self._on_cancel)
        sequence = Sequence(request, stream, self.model_info.num_layers, self.model_info.eos_token_ids)
        with self._wake:
            self._check_ready()
            self._check_queue(request.tenant)
            self._inbox.append(sequence)
            self._wake.notify()
        return stream

    async def self_test(self, folded: FoldedSet) -> SelfTestReport:
        info = self.model_info
        with self._wake:
            self._check_ready()
            report = self._jobs.add(lambda: run_self_test(self._model, folded, info.vocab_size, info.max_model_len))
            self._wake.notify()
        return await asyncio.wrap_future(report)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=len(self._scheduler.running),
            num_requests_waiting=len(self._inbox) + len(self._scheduler.waiting),
            kv_cache_usage=self._kv_cache.usage,
            num_prompt_tokens=self._counters["prompt_tokens"],
            num_generated_tokens=self._counters["generated_tokens"],
            num_steps=self._counters["steps"],
            num_restarts=self._counters["restarts"],
            num_preemptions=self._counters["preemptions"] + self._scheduler.num_preemptions,
            prefix_cache_bytes=self._prefix_cache.num_bytes,
            num_prefix_queried_tokens=self._counters["prefix_queried"] + self._prefix_cache.num_queried_tokens,
            num_prefix_hit_tokens=self._counters["prefix_hits"] + self._prefix_cache.num_hit_tokens,
            num_prefix_evictions=self._counters["prefix_evictions"] + self._prefix_cache.num_evictions,
        )

    def start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="reft-engine", daemon=True)
            self._thread.start()
            self._watchdog.start()

    async def stop(self) -> None:
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
            await asyncio.to_thread(self._watchdog.stop)

    def _on_hang(self) -> None:
        """Tell every client now: the step may never end, and then nothing else would. Runs in the watchdog's thread."""
        error = EngineDeadError("the engine hangs in a step; try again once /ready answers 200")
        with self._wake:
            sequences = [*self._scheduler.running, *self._scheduler.waiting, *self._inbox]
            self._jobs.fail(error)
        publish((one.stream, [TokenOutput(None, finish_reason="error", error=error)]) for one in sequences)
        for sequence in sequences:
            sequence.stream.cancel()  # it leaves if the step ever ends

    def bound_queue(self, max_len: int, max_time_s: float) -> None:
        """Change the limits of the queue, from the next step on; those that wait already are not excepted."""
        self._settings = replace(self._settings, max_queue_len=max_len, max_queue_time_s=max_time_s)
        self._scheduler.settings = self._settings

    def _check_queue(self, tenant: str) -> None:
        """A full queue still takes a request of a tenant that has fewer there than another, who then gives way."""
        limit = self._settings.max_queue_len
        num_waiting = len(self._inbox) + len(self._scheduler.waiting)
        if num_waiting >= limit:
            num_own = sum(one.request.tenant == tenant for one in self._inbox)
            can_displace = self._scheduler.waiting.is_lighter_than_another(tenant, num_own + 1)
            if num_waiting >= 2 * limit or not can_displace:
                raise EngineOverloadedError(f"{limit} requests are waiting already; try again in a moment")

    def _check_ready(self) -> None:
        if not self.is_ready:
            raise EngineDeadError("the engine is not running; try again once /ready answers 200")

    def _on_cancel(self) -> None:
        with self._wake:
            self._has_cancelled = True
            self._wake.notify()

    # --- the engine's thread

    def _run(self) -> None:
        """Step until stopped. A crash outside a request's own forward fails what is in flight, then starts afresh."""
        if self._settings.num_threads is not None:
            torch.set_num_threads(self._settings.num_threads)
        use_device(self._model.kv_layout.device)
        while not self._is_stopping:
            try:
                while not self._is_stopping:
                    if not self.step():
                        self._wait_for_work()
            except Exception:
                logger.exception("engine crashed, restarting num_running=%d", len(self._scheduler.running))
                self._is_restarting = True
                self._counters["restarts"] += 1
                self._fail_all(EngineDeadError("the engine failed and was restarted; send the request again"))
                self._wait_until_model_runs()
        self._fail_all(EngineDeadError("the server is shutting down"))
        for job in self._jobs.take():
            job()

    def step(self) -> bool:
        """Schedule and launch a step, settle and publish the one before; False when there was nothing to do."""
        self._watchdog.begin()
        num_generated = self._counters["generated_tokens"]
        try:
            self._take_in()
            is_ahead = self._steps.is_ahead
            chunks = self._scheduler.schedule_ahead() if is_ahead else self._scheduler.schedule()
            if not (chunks or is_ahead) and self._scheduler.waiting:
                raise RuntimeError("requests wait and none can run")
            self._steps.run(chunks)
            self._steps.publish()
            if self._steps.take_failed() and self._counters["generated_tokens"] == num_generated:
                check_runs(self._model, self.model_info.vocab_size)  # nothing worked: whose fault was it?
        finally:
            self._watchdog.end()
        return bool(chunks) or is_ahead

    def _wait_for_work(self) -> None:
        with self._wake:
            while not (self._inbox or self._jobs or self._has_cancelled or self._is_stopping):
                self._wake.wait()

    def _take_in(self) -> None:
        """New requests, jobs, cancellations and queue-time limits."""
        with self._wake:
            arrived, jobs = list(self._inbox), self._jobs.take()
            self._inbox.clear()
            has_cancelled, self._has_cancelled = self._has_cancelled, False
            for sequence in arrived:
                self._scheduler.add(sequence)
        for job in jobs:
            job()
        if has_cancelled:
            for sequence in (*self._scheduler.running, *self._scheduler.waiting):
                if sequence.stream.is_cancelled:
                    self._steps.finish(sequence, "cancelled")
        for sequence, error in (*self._scheduler.overdue(), *self._scheduler.displaced()):
            self._steps.finish(sequence, "error", error)

    def _fail_all(self, error: ReftError) -> None:
        """Fail everything in flight and start over with an empty cache; ready again if the model runs."""
        steps = self._steps
        steps.abandon()
        with self._wake:
            sequences = [*self._scheduler.running, *self._scheduler.waiting, *self._inbox]
            self._inbox.clear()
        self._is_restarting = not self._try_restart()  # before anybody hears of it and sends again
        steps.publish()  # of those that had ended
        publish((one.stream, [TokenOutput(None, finish_reason="error", error=error)]) for one in sequences)

    def _try_restart(self) -> bool:
        """Make everything anew, and say whether the model runs. Nobody can submit meanwhile, so no lock is held."""
        scheduler, prefix_cache = self._scheduler, self._prefix_cache
        try:
            self._reset()
            self._keep_counts(scheduler, prefix_cache)
            if not self._is_stopping:
                check_runs(self._model, self.model_info.vocab_size)
        except Exception:
            logger.exception("engine can't restart: its model does not run")
            self._failing_since = self._failing_since or time.monotonic()
            return False
        self._failing_since = None
        return True

    def _wait_until_model_runs(self) -> None:
        """Try again and again, less and less often. Jobs would wait for it: they fail now."""
        delay_s = _FIRST_TRIAL_AFTER_S
        while self._is_restarting and not self._is_stopping:
            with self._wake:
                self._jobs.take()
                self._jobs.fail(EngineDeadError("the engine's model does not run; see the server's log"))
                self._wake.wait_for(lambda: self._is_stopping, delay_s)
            self._is_restarting = not self._try_restart()
            delay_s = min(2 * delay_s, _MAX_TIME_BETWEEN_TRIALS_S)

    def _keep_counts(self, scheduler: Scheduler, prefix_cache: PrefixCache) -> None:
        """Counters go on over a restart, which replaces what counts."""
        self._counters["preemptions"] += scheduler.num_preemptions
        self._counters["prefix_queried"] += prefix_cache.num_queried_tokens
        self._counters["prefix_hits"] += prefix_cache.num_hit_tokens
        self._counters["prefix_evictions"] += prefix_cache.num_evictions

    def _make_kv_cache(self, previous: KVAllocator | None) -> KVAllocator:
        """An empty cache, in the memory of the previous one where that is worth taking over."""
        settings = self._settings
        return make_kv_cache(
            self._model.kv_layout,
            budget_bytes=self._sizes.kv_bytes,
            max_rows=settings.max_num_seqs,
            max_tokens=self.model_info.max_model_len,
            prefix_bytes=self._sizes.prefix_bytes,
            previous=previous,
        )

    def _reset(self) -> None:
        settings = self._settings
        self._kv_cache = self._make_kv_cache(self._kv_cache)
        memory = self._kv_cache.block_memory(self._sizes.prefix_bytes)
        self._prefix_cache = PrefixCache(memory, is_shared=settings.prefix_cache_scope == "shared")
        placement = Placement(
            self._kv_cache,
            self._prefix_cache if settings.prefix_cache_scope != "off" else None,
            shares_prefixes=self._model.supports_shared_prefixes,
        )
        self._scheduler = Scheduler(settings, placement)
        self._steps = StepRunner(
            self._model, self._scheduler, self._edit_planner, self.model_info.eos_token_ids, self._counters
        )
