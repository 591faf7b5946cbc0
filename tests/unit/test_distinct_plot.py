"""The plot of the cost of distinct interventions is what the measured figures draw."""

from __future__ import annotations

import json
from xml.etree import ElementTree

from benchmarks.distinct_plot import PLOT, draw
from benchmarks.machine import RESULTS


def test_distinct_plot_is_drawn_from_the_results() -> None:
    result = json.loads((RESULTS / "distinct.json").read_text(encoding="utf-8"))
    drawn = draw(result)
    assert PLOT.read_text(encoding="utf-8") == drawn, "run: python -m benchmarks.distinct_plot"
    svg = ElementTree.fromstring(drawn)  # well-formed
    num_points = sum(len(series["over_base"]) for series in result["series"])
    num_bases = num_legends = 2
    assert len(svg.findall("{*}circle")) == num_points + num_bases + num_legends
