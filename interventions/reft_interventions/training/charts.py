"""Line charts as SVG, for a page that needs nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 36, 48
_MAX_POINTS = 400
_NUM_TICKS = 6

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One curve; a series of few points is drawn with a dot at each. An empty label stays out of the legend."""

    label: str
    colour: str
    points: Sequence[Point]
    width: float = 2.0


def line_chart(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """An SVG element with labelled axes; text is escaped. Curves of more than 400 points show means."""
    curves = [Series(s.label, s.colour, _thinned(s.points), s.width) for s in series if s.points]
    return "\n".join(_elements(title, x_label, y_label, curves))


def nice_ticks(low: float, high: float) -> list[float]:
    """Round numbers that cover `[low, high]`, about six of them."""
    span = max(high - low, abs(high) * 1e-6, 1e-9)
    magnitude = 10.0 ** math.floor(math.log10(span / _NUM_TICKS))
    step = next(m * magnitude for m in (1, 2, 5, 10) if span / (m * magnitude) <= _NUM_TICKS)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    size = math.ceil(len(points) / _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def _elements(title: str, x_label: str, y_label: str, curves: Sequence[Series]) -> Iterator[str]:
    every = [point for curve in curves for point in curve.points] or [(0.0, 0.0), (1.0, 1.0)]
    x_ticks = nice_ticks(min(x for x, _ in every), max(x for x, _ in every))
    y_ticks = nice_ticks(min(y for _, y in every), max(y for _, y in every))
    x = _Scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - _RIGHT)
    y = _Scale(y_ticks[0], y_ticks[-1], _HEIGHT - _BOTTOM, _TOP)
    yield (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" '
        'font-family="sans-serif" font-size="12" fill="#222">'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    yield _text(_LEFT, 18, title, size=14)
    for tick in y_ticks:
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(tick)}" y2="{y(tick)}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y(tick) + 4, f"{tick:.6g}", anchor="end")
    for tick in x_ticks:
        yield _text(x(tick), _HEIGHT - _BOTTOM + 18, f"{tick:.6g}", anchor="middle")
    yield _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 10, x_label, anchor="middle")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield f'<g transform="translate(16 {middle}) rotate(-90)">{_text(0, 0, y_label, anchor="middle")}</g>'
    for curve in curves:
        path = " ".join(f"{x(a)},{y(b)}" for a, b in curve.points)
        yield f'<polyline points="{path}" fill="none" stroke="{curve.colour}" stroke-width="{curve.width}"/>'
        if len(curve.points) <= 30:
            yield from (f'<circle cx="{x(a)}" cy="{y(b)}" r="3" fill="{curve.colour}"/>' for a, b in curve.points)
    yield from _legend([curve for curve in curves if curve.label])
    yield "</svg>"


def _legend(curves: Sequence[Series]) -> Iterator[str]:
    for index, curve in enumerate(curves):
        left, top = _WIDTH - _RIGHT - 150, _TOP + 14 + 18 * index
        yield f'<rect x="{left}" y="{top - 6}" width="20" height="4" fill="{curve.colour}"/>'
        yield _text(left + 28, top, curve.label)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'
