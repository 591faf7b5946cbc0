"""The figures and plots of the README and docs/benchmarks.md are those of benchmarks/results/."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import distinct_plot, tables, throughput_plot
from benchmarks.figures import read_results, write_result
from benchmarks.machine import RESULTS
from benchmarks.report import PAGES, SECTIONS, section, with_sections

PLOTS = {"distinct": distinct_plot, "throughput": throughput_plot}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_quote_the_kept_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_sections(text), "run: python -m benchmarks.report"


def test_every_section_is_on_a_page() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert all(text.count(marker) == 1 for marker in SECTIONS)


def test_report_has_the_figures_of_a_gpu_once_there_is_a_record(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    shutil.copytree(RESULTS, folder)
    (folder / "gpu.jsonl").unlink(missing_ok=True)
    without = section(folder)
    ceilings = {"copy_gb_per_s": 4000.0, "from_host_gb_per_s": 50.0, "bf16_tflops": 700.0}
    result = {"machine": {"torch": "2.11"}, "device": "H200", "ceilings": ceilings}
    write_result("gpu", result | {"activation": {"from_host_ms": 0.5, "from_disk_ms": 25.0}}, folder)
    added = section(folder).removeprefix(without)
    assert added != section(folder)
    assert "One H200, torch 2.11" in added
    assert "| a set from host | 0.5 ms | <= 1 ms | met |" in added
    assert "| a set from disk | 25 ms | <= 20 ms | MISSED |" in added


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_drawn_from_the_results(name: str) -> None:
    plot = PLOTS[name]
    drawn = plot.draw(read_results(plot.RESULT_NAMES))
    assert plot.PLOT.read_text(encoding="utf-8") == drawn, "run: python -m benchmarks.report"
    ElementTree.fromstring(drawn)  # well-formed
    assert all(f"{plot.PLOT.name})" in page.read_text(encoding="utf-8") for page in PAGES)


def test_distinct_plot_has_a_point_for_every_measured_mix() -> None:
    results = read_results(distinct_plot.RESULT_NAMES)
    svg = ElementTree.fromstring(distinct_plot.draw(results))
    num_points = sum(len(series["over_base"]) for result in results for series in result["series"])
    curves = {(r["job"]["server"], p["kind"]) for r in results for s in r["series"] for p in s["over_base"]}
    num_bases = num_legends = len(curves)
    assert len(svg.findall("{*}circle")) == num_points + num_bases + num_legends


def test_every_measured_contender_has_a_row_and_a_bar() -> None:
    results = read_results(throughput_plot.RESULT_NAMES)
    names = {name for result in results for name in result["batches"][0]["tokens_per_s"]}
    labels = {tables.LABELS[name] for name in names}
    assert {row[0] for row in tables.peers(results).rows} == labels
    texts = {element.text for element in ElementTree.fromstring(throughput_plot.draw(results)).findall("{*}text")}
    assert labels <= texts
