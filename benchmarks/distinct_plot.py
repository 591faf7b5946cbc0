"""The plot of `distinct.json`: throughput over that of the base, against the number of distinct sets in the batch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.machine import RESULTS

PLOT = Path(__file__).parents[1] / "docs" / "distinct.svg"
_WIDTH, _HEIGHT = 640, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 44, 52
_TICKS = (0, 1, 8, 64, 512)
_LOWEST, _HIGHEST = 0.8, 1.1
_COLOURS = {"f3+l3": "#1f6feb", "all": "#d1570c"}
_LABELS = {"f3+l3": "f3+l3 (prompt only)", "all": "all positions"}
_SHIFTS = {"f3+l3": -4, "all": 4}  # so that bars don't hide each other


def write_plot(result: dict[str, Any]) -> None:
    """Keep the plot under `docs/`."""
    PLOT.write_text(draw(result), encoding="utf-8")


def draw(result: dict[str, Any]) -> str:
    """An SVG document: medians as points, the range over the rounds as bars."""
    return "\n".join(_elements(result)) + "\n"


def _elements(result: dict[str, Any]) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222">'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    yield _text(_LEFT, 20, "Throughput over the base model's, by distinct interventions in the batch", size=14)
    job = result["job"]
    setting = f"{job['model']} {job['dtype']}, {job['sets']}; medians of {result['rounds']} rounds, bars: range"
    yield _text(_LEFT, 36, setting, fill="#666")
    for percent in range(80, 111, 5):
        y, colour = _y(percent / 100), "#888" if percent == 100 else "#ddd"
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="{colour}"/>'
        yield _text(_LEFT - 8, y + 4, f"{percent} %", anchor="end")
    for tick in _TICKS:
        yield _text(_x(tick), _HEIGHT - _BOTTOM + 18, "base" if tick == 0 else str(tick), anchor="middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "distinct interventions mixed (sets)", anchor="middle")
    for index, (positions, colour) in enumerate(_COLOURS.items()):
        yield from _curve(result, positions)
        y = _HEIGHT - _BOTTOM - 34 + 18 * index
        yield f'<circle cx="{_LEFT + 20}" cy="{y}" r="4" fill="{colour}"/>'
        yield _text(_LEFT + 30, y + 4, _LABELS[positions])
    yield "</svg>"


def _curve(result: dict[str, Any], positions: str) -> Iterator[str]:
    points: dict[int, dict[str, float]] = {0: {"median": 1.0, "min": 1.0, "max": 1.0}}
    for series in result["series"]:
        points |= {r["num_distinct"]: r for r in series["over_base"] if r["positions"] == positions}
    colour, shift = _COLOURS[positions], _SHIFTS[positions]
    path = " ".join(f"{_x(k) + shift},{_y(points[k]['median'])}" for k in sorted(points))
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for k, ratio in points.items():
        x = _x(k) + shift
        yield f'<line x1="{x}" x2="{x}" y1="{_y(ratio["min"])}" y2="{_y(ratio["max"])}" stroke="{colour}"/>'
        yield f'<circle cx="{x}" cy="{_y(ratio["median"])}" r="4" fill="{colour}"/>'


def _x(num_distinct: int) -> float:
    """Ticks at equal distances: 0, then powers of eight."""
    return _LEFT + 20 + _TICKS.index(num_distinct) * (_WIDTH - _LEFT - _RIGHT - 40) / (len(_TICKS) - 1)


def _y(ratio: float) -> float:
    inside = min(max(ratio, _LOWEST), _HIGHEST)
    return round(_TOP + (_HIGHEST - inside) / (_HIGHEST - _LOWEST) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, fill: str = "#222") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{text}</text>'


if __name__ == "__main__":
    write_plot(json.loads((RESULTS / "distinct.json").read_text(encoding="utf-8")))
