"""A line or scatter plot as an SVG element."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["Point", "draw_plot", "ticks"]

Point = tuple[float, float]
WIDTH, HEIGHT = 620, 360
LEFT, RIGHT, TOP, BOTTOM = 70, 20, 40, 80
NUM_TICKS = 6
COLORS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")


def ticks(low: float, high: float) -> list[float]:
    """About `NUM_TICKS` round numbers (1, 2 or 5 times a power of ten apart) whose ends enclose both bounds."""
    rough = max(high - low, abs(high) * 1e-6, 1e-9) / NUM_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


def draw_plot(
    title: str, x_title: str, y_title: str, lines: Mapping[str, Sequence[Point]], *, is_cloud: bool = False
) -> str:
    """Draw named lines over round axes; y begins at 0.

    Args:
        lines: points in order of x; the names make a legend where there are several.
        is_cloud: dots alone.
    """
    points = [point for line in lines.values() for point in line]
    x_ticks = ticks(min((x for x, _ in points), default=0.0), max((x for x, _ in points), default=1.0))
    y_ticks = ticks(0.0, max((y for _, y in points), default=1.0))

    def place(point: Point) -> Point:
        x = LEFT + (point[0] - x_ticks[0]) / (x_ticks[-1] - x_ticks[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - point[1] / y_ticks[-1] * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [_text(WIDTH / 2, 20, title, size=15)]
    for value in y_ticks:
        _, y = place((x_ticks[0], value))
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{value:.4g}", anchor="end"))
    parts += [_text(place((value, 0.0))[0], HEIGHT - BOTTOM + 16, f"{value:.6g}") for value in x_ticks]
    parts.append(_text(WIDTH / 2, HEIGHT - BOTTOM + 38, x_title))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    parts.append(f'<g transform="rotate(-90 16 {middle})">{_text(16, middle, y_title)}</g>')
    for number, (name, line) in enumerate(lines.items()):
        color = COLORS[number % len(COLORS)]
        places = [place(point) for point in line]
        if is_cloud or len(line) == 1:
            parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}" fill-opacity=".6"/>' for x, y in places]
        elif places:
            path = " ".join(f"{x},{y}" for x, y in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        if len(lines) > 1:
            x = LEFT + 110 * number
            parts.append(f'<rect x="{x}" y="{HEIGHT - 24}" width="12" height="12" fill="{color}"/>')
            parts.append(_text(x + 18, HEIGHT - 13, name, anchor="start"))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" xmlns="http://www.w3.org/2000/svg" role="img">{"".join(parts)}</svg>'


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12) -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" font-family="sans-serif"'
    return f'<text x="{x:g}" y="{y:g}" {style}>{escape(text)}</text>'
