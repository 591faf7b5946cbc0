"""Prometheus metrics of one server, named as vLLM's with the prefix `reft:`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from reft_client.types import JobStatus
from reft_server.engine.pool import PoolStats
from reft_server.engine.types import EngineStats

OTHER_LABEL = "other"
BASE_LABEL = "base"
_TIME_TO_FIRST_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_INTER_TOKEN_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
_END_TO_END_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """Counters and histograms that the API feeds, and gauges read from the engine and the registry at a scrape.

    Args:
        engine_stats: the engine's counters and gauges now.
        pool_stats: the intervention pool's.
        job_counts: fine-tuning jobs by status.
        max_intervention_labels: distinct interventions with a label of their own; later ones count as `other`.
    """

    def __init__(
        self,
        engine_stats: Callable[[], EngineStats],
        pool_stats: Callable[[], PoolStats],
        job_counts: Callable[[], Mapping[str, int]] = dict,
        max_intervention_labels: int = 64,
    ) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_LiveCollector(engine_stats, pool_stats, job_counts))
        self._labels: set[str] = set()
        self._max_labels = max_intervention_labels
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
        self._by_intervention = self._counter(
            "intervention_requests", "Answers started, by the intervention that edits them.", "intervention"
        )
        self._uploads = self._counter("intervention_uploads", "Uploads: stored, or an error code.", "outcome")

    def count_success(self, finish_reason: str) -> None:
        """An answer ended with `finish_reason`."""
        self._success.labels(finish_reason).inc()

    def count_error(self, code: str) -> None:
        """A request failed with the error `code`."""
        self._errors.labels(code).inc()

    def count_intervention(self, name: str | None) -> None:
        """An answer started under the intervention `name`; None = the base model."""
        if name is None:
            label = BASE_LABEL
        elif name in self._labels or len(self._labels) < self._max_labels:
            self._labels.add(name)
            label = name
        else:
            label = OTHER_LABEL
        self._by_intervention.labels(label).inc()

    def count_upload(self, outcome: str) -> None:
        """An upload ended: `stored`, or the error's code."""
        self._uploads.labels(outcome).inc()

    def render(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, description: str, label: str) -> Counter:
        return Counter(f"reft:{name}", description, (label,), registry=self.registry)

    def _histogram(self, name: str, description: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"reft:{name}", description, buckets=buckets, registry=self.registry)


class _LiveCollector(Collector):
    """Values that live elsewhere, read when Prometheus asks."""

    def __init__(
        self,
        engine_stats: Callable[[], EngineStats],
        pool_stats: Callable[[], PoolStats],
        job_counts: Callable[[], Mapping[str, int]],
    ) -> None:
        self._engine_stats = engine_stats
        self._pool_stats = pool_stats
        self._job_counts = job_counts

    def collect(self) -> Iterator[Metric]:
        stats, pool = self._engine_stats(), self._pool_stats()
        for name, description, value in (
            ("num_requests_running", "Sequences in the batch.", stats.num_requests_running),
            ("num_requests_waiting", "Requests in the queue.", stats.num_requests_waiting),
            ("kv_cache_usage_perc", "Part of the KV cache in use, 0 to 1.", stats.kv_cache_usage),
            ("prefix_cache_bytes", "Memory of the prefix cache.", stats.prefix_cache_bytes),
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
            ("num_preemptions", "Sequences that gave their KV up for a while.", stats.num_preemptions),
            ("engine_restarts", "Restarts of the engine's thread.", stats.num_restarts),
        ):
            yield CounterMetricFamily(f"reft:{name}", description, value=value)
