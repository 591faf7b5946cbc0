"""Plots: round axes, everything inside, and nothing that a name could break."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from reft_client.bench.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_plot, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 7, [0, 2, 4, 6, 8]),
        (174, 201, [170, 175, 180, 185, 190, 195, 200, 205]),
        (0, 0, [0, 2e-10]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_plot_keeps_points_inside_its_axes() -> None:
    svg = draw_plot("t", "x", "y", {"a": [(0.0, 0.0), (3.0, 50.0), (9.9, 997.0)]})
    line = re.search(r'<polyline points="([^"]+)"', svg)
    assert line
    points = [tuple(float(number) for number in point.split(",")) for point in line[1].split()]
    assert points[0] == (LEFT, HEIGHT - BOTTOM)
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in points)


@pytest.mark.parametrize("lines", [{}, {"a": []}, {"a": [(1.0, 2.0)], "<b>": [(1.0, 0.0)]}])
def test_plot_of_little_or_nothing_is_well_formed(lines: dict[str, list[tuple[float, float]]]) -> None:
    root = ElementTree.fromstring(draw_plot("a < b & c", "x", "y", lines))
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "a < b & c" in texts
    assert ("<b>" in texts) is (len(lines) > 1)
