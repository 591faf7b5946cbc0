"""docs/store.md: its code runs, and its picture of the folder is what the store makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reft_interventions import save
from tests.intervention_sets import make_set

PAGE = Path(__file__).parents[3] / "docs" / "store.md"


def test_docs_store_code_runs_and_makes_the_folder_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert blocks
    save(make_set(1), tmp_path / "haiku.safetensors")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})  # noqa: S102 - the page is ours
    drawn = set(re.findall(r"^  (\w[\w.]*)", text.split("store/\n")[1].split("```")[0], flags=re.MULTILINE))
    made = {path.name for path in (tmp_path / "store").iterdir()}
    assert made == drawn
