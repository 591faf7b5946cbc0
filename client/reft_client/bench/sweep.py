"""The highest rate at which a server still meets the objectives."""

from __future__ import annotations

import math
from typing import Any

from .live import LiveView
from .measurement import measure
from .worker import Job, plan_of

__all__ = ["RateSearch", "sweep"]

PRECISION = 1.1
MAX_HALVINGS = 6
POINT = (
    *("num_requests", "num_failed", "requests_per_s", "output_tokens_per_s", "good_share", "goodput_requests_per_s"),
    *("ttft_s", "itl_s", "tpot_s", "e2e_s"),
)


class RateSearch:
    """Doubles the rate until the objectives are missed, then halves the gap until it is within `PRECISION`.

    Args:
        low: the first rate. While it misses them, lower ones are tried, `MAX_HALVINGS` times.
        high: no higher rate is tried.
    """

    def __init__(self, low: float, high: float) -> None:
        self._low = low
        self._high = high
        self._missed = math.inf
        self.best: float | None = None

    def note(self, rate: float, *, is_met: bool) -> None:
        """Take the outcome of a rate."""
        if is_met:
            self.best = max(rate, self.best or 0.0)
        else:
            self._missed = min(rate, self._missed)

    def next(self) -> float | None:
        """The rate to try now; None = the search is over."""
        if self.best is None:
            rate = min(self._low, self._missed / 2)
            return rate if rate >= self._low / 2**MAX_HALVINGS else None
        if math.isinf(self._missed):
            return min(2 * self.best, self._high) if self.best < self._high else None
        return math.sqrt(self.best * self._missed) if self._missed / self.best > PRECISION else None


async def sweep(job: Job, view: LiveView) -> dict[str, Any]:
    """Run one load per rate, each with prompts of its own so that no step finds the last one's in the server's cache.

    Returns:
        The document of the best rate (of the lowest, if none met the objectives), and `sweep` with every step.
    """
    low, high = job.options.sweep or (1.0, 1.0)
    search = RateSearch(low, high)
    documents: dict[float, dict[str, Any]] = {}
    points: list[dict[str, Any]] = []
    while (rate := search.next()) is not None:
        step = {"sweep": None, "rate": (rate, rate), "seed": job.options.seed + len(points)}
        step_job = job.model_copy(update={"options": job.options.model_copy(update=step)})
        documents[rate] = document = await measure(step_job, plan_of(step_job), view)
        summary = document["summary"]
        is_met = summary["good_share"] >= job.options.good_share
        is_bottleneck = document["client"]["is_bottleneck"]
        points.append(
            {"rate": rate, "is_met": is_met, "is_bottleneck": is_bottleneck, **{name: summary[name] for name in POINT}}
        )
        if document["is_interrupted"]:
            break
        search.note(rate, is_met=is_met)
    best = search.best if search.best is not None else min(documents)
    is_interrupted = any(document["is_interrupted"] for document in documents.values())
    return {
        **documents[best],
        "is_interrupted": is_interrupted,
        "options": job.options.model_dump(mode="json"),
        "sweep": {"best_rate": search.best, "points": points},
    }
