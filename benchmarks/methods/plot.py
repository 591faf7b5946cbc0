"""The plot of sample efficiency: held-out accuracy against the number of training rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

PLOT = Path(__file__).parents[2] / "docs" / "sample-efficiency.svg"
_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 52, 96
_COLOURS = ("#1f6feb", "#d1570c", "#2da44e", "#8250df", "#6e7781")
_HIGHEST = 0.9
_SHIFT = 7
"""Between methods, so that bars don't hide each other."""

Curve = Sequence[tuple[float, float]]
"""Mean and standard deviation at every number of rows."""


def draw(num_rows: Sequence[int], curves: Mapping[str, Curve], base: float) -> str:
    """An SVG document: means as points, standard deviations as bars, the base model as a dashed line."""
    return "\n".join(_elements(num_rows, curves, base)) + "\n"


def _elements(num_rows: Sequence[int], curves: Mapping[str, Curve], base: float) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222">'
    )
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>'
    yield _text(_LEFT, 20, "Kind of a noun (one of 8): held-out accuracy by training rows", size=14)
    yield _text(_LEFT, 38, "SmolLM2-135M-Instruct, 300 held-out rows; mean of 3 seeds, bars: ± standard deviation")
    for percent in range(0, 91, 10):
        y = _y(percent / 100)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>'
        yield _text(_LEFT - 8, y + 4, str(percent), anchor="end")
    for number in num_rows:
        yield _text(_x(number, num_rows), _HEIGHT - _BOTTOM + 18, f"{number:,}", anchor="middle")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield _text(middle, _HEIGHT - _BOTTOM + 38, "training rows (logarithmic)", anchor="middle")
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    yield f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">held-out accuracy (%)</text>'
    for name, accuracy in (("base model", base), ("guessing", 1 / 8)):
        y = _y(accuracy)
        yield f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" stroke="#222" stroke-dasharray="5 4"/>'
        yield _text(_WIDTH - _RIGHT, y - 5, f"{name} {accuracy:.1%}", anchor="end")
    for index, (title, curve) in enumerate(curves.items()):
        colour = _COLOURS[index]
        yield from _curve(num_rows, curve, colour, _SHIFT * (index - (len(curves) - 1) / 2))
        x, y = _LEFT + 190 * (index % 3), _HEIGHT - 32 + 20 * (index // 3)
        yield f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>'
        yield _text(x + 10, y + 4, title)
    yield "</svg>"


def _curve(num_rows: Sequence[int], curve: Curve, colour: str, shift: float) -> Iterator[str]:
    places = [(round(_x(number, num_rows) + shift, 1), *point) for number, point in zip(num_rows, curve, strict=True)]
    path = " ".join(f"{x},{_y(mean)}" for x, mean, _ in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
    for x, mean, deviation in places:
        yield (
            f'<line x1="{x}" x2="{x}" y1="{_y(mean - deviation)}" y2="{_y(mean + deviation)}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        for end in (_y(mean - deviation), _y(mean + deviation)):
            yield f'<line x1="{x - 3}" x2="{x + 3}" y1="{end}" y2="{end}" stroke="{colour}" stroke-width="2"/>'
        yield f'<circle cx="{x}" cy="{_y(mean)}" r="2.5" fill="{colour}"/>'


def _x(number: int, num_rows: Sequence[int]) -> float:
    low, high = math.log(num_rows[0]), math.log(num_rows[-1])
    return round(_LEFT + 40 + (math.log(number) - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT - 160), 1)


def _y(accuracy: float) -> float:
    return round(_TOP + (1 - accuracy / _HIGHEST) * (_HEIGHT - _TOP - _BOTTOM), 1)


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{text}</text>'
