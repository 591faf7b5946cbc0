"""The plots of a run's page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .svg import Point, draw_plot

__all__ = ["draw_charts"]

CDFS = (("TTFT", "ttft_s"), ("ITL", "itl_s"), ("TPOT", "tpot_s"), ("E2E", "e2e_s"))


def draw_charts(document: dict[str, Any]) -> Iterator[str]:
    """The SVG of each plot: over time, cumulative distributions, latency against rate where rates differ."""
    series = document["series"]
    moments = [series["slice_s"] * (number + 0.5) for number in range(len(series["requests_per_s"]))]

    def over_time(name: str, scale: float = 1.0) -> list[Point]:
        return _points(moments, series[name], scale)

    yield draw_plot(
        *("Output tokens/s over time", "time in s", "tokens/s"), {"output tokens": over_time("output_tokens_per_s")}
    )
    requests = {"due": over_time("due_per_s"), "answered": over_time("requests_per_s")}
    if any(series["failed_per_s"]):
        requests["failed"] = over_time("failed_per_s")
    yield draw_plot("Requests/s over time", "time in s", "requests/s", requests)
    ttft = {"p50": over_time("ttft_p50_s", 1e3), "p99": over_time("ttft_p99_s", 1e3)}
    yield draw_plot("TTFT over time, by when requests were due", "time in s", "TTFT in ms", ttft)
    for title, name in CDFS:
        if name in document["cdfs"]:
            values = [1e3 * value for value in document["cdfs"][name]]
            shares = [percent / 100 for percent in range(len(values))]
            line = list(zip(values, shares, strict=True))
            yield draw_plot(f"{title}, cumulative distribution", f"{title} in ms", "share of values", {title: line})
    yield from _against_rate(document)


def _against_rate(document: dict[str, Any]) -> Iterator[str]:
    """From a sweep's steps; else from the slices of a ramp."""
    if document["sweep"] is not None:
        points = sorted(document["sweep"]["points"], key=lambda point: float(point["rate"]))
        rates = [point["rate"] for point in points]
        for title, key in (("TTFT", "ttft_s"), ("TPOT", "tpot_s"), ("E2E", "e2e_s")):
            lines = {
                which: _points(rates, [point[key][which] for point in points], 1e3) for which in ("p50", "p90", "p99")
            }
            yield draw_plot(f"{title} against rate", "requests/s due", f"{title} in ms", lines)
        return
    rate = document["options"]["rate"]
    if rate is not None and rate[0] != rate[1]:
        series = document["series"]
        cloud = {which: _points(series["due_per_s"], series[f"ttft_{which}_s"], 1e3) for which in ("p50", "p99")}
        yield draw_plot("TTFT against rate, slice by slice", "requests/s due", "TTFT in ms", cloud, is_cloud=True)


def _points(xs: Sequence[float], ys: Iterable[float | None], scale: float) -> list[Point]:
    return [(x, scale * y) for x, y in zip(xs, ys, strict=True) if y is not None]
