"""Prometheus metrics of one server, named as vLLM's with the prefix `reft:`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reft_client.types import JobStatus
from reft_server.engine.device_pool import DevicePoolStats
from reft_server.engine.pool import PoolStats
from reft_server.engine.types import EngineStats

from .request_context import current_tenant
from .top_labels import OTHER_LABEL, TopLabels

ShadowOutcome = Literal["same", "different", "failed", "dropped"]
BASE_LABEL = "base"
_TIME_TO_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_INTER_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_END_TO_END_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_QUEUE_TIME_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@dataclass(frozen=True)
class ResidentInterventions:
    """Names of sets in memory, the latest used first, and of those that requests wait for while they are loaded."""

    names: tuple[str, ...] = ()
    loading: tuple[str, ...] = ()


class Metrics:
    """Counters and histograms that the API feeds, and gauges read from the engine and the registry at a scrape.

    Args:
        engine_stats: the engine's counters and gauges now.
        pool_stats: the intervention pool's.
        job_counts: fine-tuning jobs by status.
        max_intervention_labels: distinct interventions, tenants and routes with a label of their own, so many of each:
            those that are asked for most of late (`TopLabels`); the others count as `other`.
        device_stats: of the copies of sets on the engine's device.
        resident: the sets in memory.
        is_ready: what `/ready` answers.
    """

    def __init__(
        self,
        engine_stats: Callable[[], EngineStats],
        pool_stats: Callable[[], PoolStats],
        job_counts: Callable[[], Mapping[str, int]] = dict,
        max_intervention_labels: int = 64,
        *,
        device_stats: Callable[[], DevicePoolStats] = DevicePoolStats,
        resident: Callable[[], ResidentInterventions] = ResidentInterventions,
        is_ready: Callable[[], bool] = bool,
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LiveCollector(engine_stats, pool_stats, job_counts, device_stats, is_ready))
        self.registry.register(_ResidentCollector(resident, max_intervention_labels))
        self._interventions = TopLabels(max_intervention_labels)
        self._tenants = TopLabels(max_intervention_labels)
        self._routes = TopLabels(max_intervention_labels)
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From a request's submission to its first step.", _QUEUE_TIME_S
        )
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From the request's submission to its first token.", _TIME_TO_FIRST_TOKEN_S
        )
        self.inter_token_latency = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of an answer.", _INTER_TOKEN_S
        )
        self.end_to_end_latency = self._histogram(
            "e2e_request_latency_seconds", "From the request's submission to its last token.", _END_TO_END_S
        )
        self._success = self._counter("request_success", "Answers that ended, by reason.", "finished_reason")
        self._errors = self._counter("request_errors", "Requests that failed, by error code.", "code")
        self._by_intervention = _TopCounter(
            self._counter(
                "intervention_requests",
                "Answers started, by tenant and by the intervention that edits them.",
                "tenant",
                "intervention",
            ),
            self._tenants,
            self._interventions,
        )
        self._by_route = _TopCounter(
            self._counter("route_requests", "Requests that a route chose a target for.", "tenant", "route"),
            self._tenants,
            self._routes,
        )
        self._shadows = _TopCounter(
            self._counter(
                "shadow_requests", "Shadow targets: same or different tokens, failed, dropped.", "route", "outcome"
            ),
            self._routes,
        )
        self._uploads = self._counter("intervention_uploads", "Uploads: stored, or an error code.", "outcome")

    def count_success(self, finish_reason: str) -> None:
        """An answer ended with `finish_reason`."""
        self._success.labels(finish_reason).inc()

    def count_error(self, code: str) -> None:
        """A request failed with the error `code`."""
        self._errors.labels(code).inc()

    def count_intervention(self, name: str | None) -> None:
        """An answer started for the current tenant under the intervention `name`; None = the base model."""
        tenant = self._tenants.observe(current_tenant())
        label = BASE_LABEL if name is None else self._interventions.observe(name)
        self._by_intervention.inc(tenant, label)

    def count_route(self, route: str) -> None:
        """A request of the current tenant started under a route."""
        self._by_route.inc(self._tenants.observe(current_tenant()), self._routes.observe(route))

    def count_shadow(self, route: str, outcome: ShadowOutcome) -> None:
        """A shadow target of a route ended, or found no place to run."""
        self._shadows.inc(self._routes.observe(route), outcome)

    def count_upload(self, outcome: str) -> None:
        """An upload ended: `stored`, or the error's code."""
        self._uploads.labels(outcome).inc()

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"reft:{name}", description, labels, registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"reft:{name}", description, buckets=buckets, registry=self.registry)


class _TopCounter:
    """A counter that drops the series whose labels have lost their names to others.

    One that comes back counts from 0 again, which Prometheus takes for a restart.

    Args:
        tops: what bounds the first labels; the others are few.
    """

    def __init__(self, counter: Counter, *tops: TopLabels) -> None:
        self._counter = counter
        self._tops = tops
        self._last_named = [top.named for top in tops]

    def inc(self, *labels: str) -> None:
        """Count one."""
        self._counter.labels(*labels).inc()
        named = [top.named for top in self._tops]
        if all(new is last for new, last in zip(named, self._last_named, strict=True)):  # replaced when they change
            return
        self._last_named = named
        kept = [names | {OTHER_LABEL, BASE_LABEL} for names in named]
        for metric in self._counter.collect():
            for values in {tuple(sample.labels.values()) for sample in metric.samples}:
                if not all(value in names for value, names in zip(values, kept, strict=False)):
                    self._counter.remove(*values)


def _num_tasks() -> int:
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:  # rendered outside of the event loop
        return 0


class _LiveCollector(Collector):
    """Values that live elsewhere, read when Prometheus asks."""

    def __init__(
        self,
        engine_stats: Callable[[], EngineStats],
        pool_stats: Callable[[], PoolStats],
        job_counts: Callable[[], Mapping[str, int]],
        device_stats: Callable[[], DevicePoolStats],
        is_ready: Callable[[], bool],
    ) -> None:
        self._engine_stats = engine_stats
        self._pool_stats = pool_stats
        self._job_counts = job_counts
        self._device_stats = device_stats
        self._is_ready = is_ready

    def collect(self) -> Iterator[Metric]:
        stats, pool, device = self._engine_stats(), self._pool_stats(), self._device_stats()
        for name, description, value in (
            ("num_requests_running", "Sequences in the batch.", stats.num_requests_running),
            ("num_requests_waiting", "Requests in the queue.", stats.num_requests_waiting),
            ("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", stats.kv_cache_usage),
            ("prefix_cache_bytes", "Memory of the prefix cache.", stats.prefix_cache_bytes),
            ("event_loop_tasks", "Asyncio tasks that have not ended.", _num_tasks()),
            ("ready", "1 while the server takes requests, else 0.", self._is_ready()),
            ("intervention_device_sets", "Copies of sets on the device.", device.num_sets),
            ("intervention_device_pinned_sets", "Copies that requests use.", device.num_pinned),
            ("intervention_device_bytes", "Memory of the copies.", device.num_bytes),
            ("interventions_resident", "Intervention sets in memory.", pool.num_sets),
            ("intervention_pool_bytes", "Memory of the intervention sets.", pool.num_bytes),
        ):
            yield GaugeMetricFamily(f"reft:{name}", description, value=value)
        jobs = GaugeMetricFamily(
            "reft:fine_tuning_jobs", "Fine-tuning jobs that are kept, by status.", labels=("status",)
        )
        counts = self._job_counts()
        for status in get_args(JobStatus):
            jobs.add_metric((status,), counts.get(status, 0))
        yield jobs
        for name, description, value in (
            ("prompt_tokens", "Prompt tokens processed.", stats.num_prompt_tokens),
            ("generation_tokens", "Tokens generated.", stats.num_generated_tokens),
            ("engine_steps", "Forward passes.", stats.num_steps),
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.num_prefix_queried_tokens),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", stats.num_prefix_hit_tokens),
            ("prefix_cache_evictions", "Blocks evicted from the prefix cache.", stats.num_prefix_evictions),
            ("intervention_pool_hits", "Sets that requests found in memory.", pool.num_hits),
            ("intervention_pool_misses", "Sets that had to be loaded.", pool.num_misses),
            ("intervention_pool_evictions", "Sets that made room for others.", pool.num_evictions),
            ("intervention_device_evictions", "Copies that made room for others.", device.num_evictions),
            ("num_preemptions", "Sequences that gave their KV up for a while.", stats.num_preemptions),
            ("engine_restarts", "Restarts of the engine's thread.", stats.num_restarts),
        ):
            yield CounterMetricFamily(f"reft:{name}", description, value=value)


class _ResidentCollector(Collector):
    """Which sets are in memory, for gateways that send a request where its set is.

    `lora_requests_info` follows the model server protocol of the Gateway API inference extension: one series, whose
    labels are comma separated names and whose value is the time, so that the newest wins.
    """

    def __init__(self, resident: Callable[[], ResidentInterventions], max_names: int) -> None:
        self._resident = resident
        self._max_names = max_names

    def collect(self) -> Iterator[Metric]:
        resident = self._resident()
        names = resident.names[: self._max_names]
        info = GaugeMetricFamily(
            "reft:lora_requests_info",
            "Sets in memory and sets being loaded, as gateways read vLLM's; the value is the time.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        loading = resident.loading[: self._max_names]
        info.add_metric((str(self._max_names), ",".join(names), ",".join(loading)), time.time())
        yield info
        by_name = GaugeMetricFamily(
            "reft:intervention_resident", "Sets in memory by name, the latest used ones.", labels=("intervention",)
        )
        for name in names:
            by_name.add_metric((name,), 1)
        by_name.add_metric((OTHER_LABEL,), len(resident.names) - len(names))
        yield by_name
