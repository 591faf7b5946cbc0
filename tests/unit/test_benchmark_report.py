"""The README's figures are those of benchmarks/results/."""

from __future__ import annotations

from benchmarks.report import END, README, START, section


def test_readme_quotes_the_kept_results() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.split(START, 1)[1].split(END, 1)[0].strip() == section()
