"""docs/training.md and docs/fine-tuning.md quote what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks.figures import read_result

DOCS = Path(__file__).parents[2] / "docs"


def test_training_page_quotes_the_measured_steps() -> None:
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    for series in read_result("training")["series"]:
        for who, ratio in series["step_over_pyreft"].items():
            has_cache = "ours_prefix_cache" in series["step_s"]
            label = "`reft-train`" + (", no prefix cache" if has_cache and who == "ours" else "")
            seconds, memory = series["step_s"][who]["median"], series["peak_mib"][who]["median"]
            row = (
                f"| `{series['positions']}` | {label} | {seconds:.2f} | {ratio['median']:.2f} ({ratio['min']:.2f} to "
                f"{ratio['max']:.2f}) | {memory:.0f} | {series['peak_over_pyreft'][who]['median']:.2f} |"
            )
            assert row in page
            assert series["peak_over_pyreft"][who]["max"] <= 1


def test_fine_tuning_page_quotes_the_measured_wait() -> None:
    page = (DOCS / "fine-tuning.md").read_text(encoding="utf-8")
    result = read_result("fine_tuning")
    for phase in ("alone", "training"):
        seconds = result["ttft_s"][phase]
        assert f"| {seconds['median']:.2f} | {seconds['min']:.2f} to {seconds['max']:.2f} |" in page
    assert f"Ratio within a round: {result['training_over_alone']['median']:.2f} " in page
