"""docs/fine-tuning.md quotes what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import read_result

DOCS = Path(__file__).parents[2] / "docs"


def test_fine_tuning_page_quotes_the_measured_wait() -> None:
    page = (DOCS / "fine-tuning.md").read_text(encoding="utf-8")
    result = read_result("fine_tuning")
    for phase in ("alone", "training"):
        seconds = result["ttft_s"][phase]
        assert f"| {seconds['median']:.2f} | {seconds['min']:.2f} to {seconds['max']:.2f} |" in page
    assert f"Ratio within a round: {result['training_over_alone']['median']:.2f} " in page
