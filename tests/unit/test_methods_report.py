"""The tables and the plot of the method comparison are what benchmarks/results/ gives."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.methods.plot import PLOT
from benchmarks.methods.report import PAGES, plot, sections, with_sections
from benchmarks.methods.results import CURVE_EXAMPLES, CURVE_METHODS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_quote_the_kept_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_sections(text), "run: python -m benchmarks.methods.report"


def test_every_section_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert sorted(set(re.findall(r"<!-- methods:(?!end)([\w-]+) -->", text))) == sorted(sections())


def test_with_sections_replaces_figures_that_the_records_do_not_give() -> None:
    text = "a\n<!-- methods:ranks -->\n| Accuracy | 99.9 |\n<!-- methods:end -->\nb"
    written = with_sections(text)
    assert "99.9" not in written
    assert sections()["ranks"] in written
    assert (written[:2], written[-2:]) == ("a\n", "\nb")


def test_plot_is_drawn_from_the_records() -> None:
    drawn = plot()
    assert PLOT.read_text(encoding="utf-8") == drawn, "run: python -m benchmarks.methods.report"
    svg = ElementTree.fromstring(drawn)  # well-formed
    num_points, num_legends = len(CURVE_METHODS) * len(CURVE_EXAMPLES), len(CURVE_METHODS)
    assert len(svg.findall("{*}circle")) == num_points + num_legends
    assert len(svg.findall("{*}polyline")) == len(CURVE_METHODS)
