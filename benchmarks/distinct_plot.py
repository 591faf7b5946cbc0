"""The plot of the `distinct` results: throughput over the base's, by the number of distinct adapters in a batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks import svg
from benchmarks.figures import read_results
from benchmarks.machine import RESULTS
from benchmarks.tables import ADAPTER_KINDS

PLOT = Path(__file__).parents[1] / "docs" / "distinct.svg"
RESULT_NAMES = ("distinct", "distinct-vllm", "distinct-peft")
_WIDTH, _HEIGHT = 680, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 52, 52
_TICKS = (0, 1, 8, 64, 512)
_HIGHEST = 1.2
_COLOURS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("ours", "f3+l3"): "#1f6feb",
        ("ours", "all"): "#d1570c",
        ("vllm", "lora"): "#6e40aa",
        ("peft", "lora"): "#2f855a",
    }
)


def write_plot(folder: Path = RESULTS, path: Path = PLOT) -> None:
    """Draw what a folder has."""
    path.write_text(draw(read_results(RESULT_NAMES, folder)), encoding="utf-8")


def draw(results: Sequence[dict[str, Any]]) -> str:
    """An SVG document: medians as points, the range over the rounds as bars."""
    return svg.document(_WIDTH, _HEIGHT, *_axes(results[0]), *_curves(results))


def _axes(result: dict[str, Any]) -> Iterator[str]:
    yield svg.text(_LEFT, 20, "Throughput over the base model's on the same server, by adapters in the batch", size=14)
    job = result["job"]
    setting = f"{job['model']} {job['dtype']}; {job['sets']}; LoRA r8 on q and v; bars: range of rounds"
    yield svg.text(_LEFT, 38, setting, fill="#666")
    for percent in range(0, 121, 20):
        y = _y(percent / 100)
        yield svg.line(_LEFT, y, _WIDTH - _RIGHT, y, "#888" if percent == 100 else "#ddd")
        yield svg.text(_LEFT - 8, y + 4, f"{percent} %", anchor="end")
    for tick in _TICKS:
        yield svg.text(_x(tick), _HEIGHT - _BOTTOM + 18, "base" if tick == 0 else str(tick), anchor="middle")
    label = "distinct adapters mixed, number (64 requests; 512 requests for 512)"
    yield svg.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, label, anchor="middle")


def _curves(results: Sequence[dict[str, Any]]) -> Iterator[str]:
    by_server = {result["job"]["server"]: result for result in results}
    present = [key for key in _COLOURS if key[0] in by_server]
    for index, key in enumerate(present):
        yield from _curve(by_server[key[0]], key[1], _COLOURS[key], shift=4 * index - 2 * (len(present) - 1))
        y = _HEIGHT - _BOTTOM - 20 - 18 * (len(present) - 1 - index)
        yield svg.circle(_LEFT + 20, y, _COLOURS[key])
        yield svg.text(_LEFT + 30, y + 4, ADAPTER_KINDS[key])


def _curve(result: dict[str, Any], kind: str, colour: str, shift: float) -> Iterator[str]:
    points: dict[int, dict[str, float]] = {0: {"median": 1.0, "min": 1.0, "max": 1.0}}
    for series in result["series"]:
        points |= {point["num_distinct"]: point for point in series["over_base"] if point["kind"] == kind}
    path = " ".join(f"{_x(k) + shift},{_y(points[k]['median'])}" for k in sorted(points))
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for k, ratio in points.items():
        x = _x(k) + shift
        yield svg.line(x, _y(ratio["min"]), x, _y(ratio["max"]), colour)
        yield svg.circle(x, _y(ratio["median"]), colour)


def _x(num_distinct: int) -> float:
    """Ticks at equal distances: 0, then powers of eight."""
    return _LEFT + 20 + _TICKS.index(num_distinct) * (_WIDTH - _LEFT - _RIGHT - 40) / (len(_TICKS) - 1)


def _y(ratio: float) -> float:
    return round(_TOP + (_HIGHEST - min(ratio, _HIGHEST)) / _HIGHEST * (_HEIGHT - _TOP - _BOTTOM), 1)


if __name__ == "__main__":
    write_plot()
