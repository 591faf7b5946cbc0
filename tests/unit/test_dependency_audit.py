"""The dependency audit: what fails a check, and what is only said."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

AUDIT = runpy.run_path(str(Path(__file__).parents[2] / ".ci/audit_dependencies.py"))
MENDED = {"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": []}
OPEN = {"id": "PYSEC-2", "fix_versions": [], "aliases": []}


def stand_in(folder: Path, output: str, status: int, error: str = "") -> str:
    """A program that says what pip-audit would."""
    program = folder / "pip-audit"
    text = f"import sys\nprint({output!r})\nprint({error!r}, file=sys.stderr)\nsys.exit({status})\n"
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("vulns", "status", "said"),
    [
        ([], 0, "1 packages audited, 1 could not be"),
        ([OPEN], 0, "jinja2 2.0: PYSEC-2, no version without it yet"),
        ([OPEN, MENDED], 1, "jinja2 2.0: PYSEC-1, upgrade to 2.1"),
    ],
)
def test_only_what_can_be_mended_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vulns: list[Any], status: int, said: str
) -> None:
    dependencies = [{"name": "jinja2", "version": "2.0", "vulns": vulns}, {"name": "ours", "skip_reason": "editable"}]
    program = stand_in(tmp_path, json.dumps({"dependencies": dependencies, "fixes": []}), 1 if vulns else 0)
    assert AUDIT["main"](program, str(tmp_path)) == status
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("is_installed", [True, False])
def test_database_out_of_reach_fails_nothing_and_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_installed: bool
) -> None:
    program = (
        stand_in(tmp_path, "", 1, "requests.exceptions.ConnectionError: no")
        if is_installed
        else str(tmp_path / "missing")
    )
    assert AUDIT["main"](program, str(tmp_path)) == 0
    assert "NOTHING WAS AUDITED" in capsys.readouterr().out


def test_audit_that_breaks_for_another_reason_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program = stand_in(tmp_path, "", 2, "error: unrecognized arguments")
    assert AUDIT["main"](program, str(tmp_path)) == 1
    assert "unrecognized arguments" in capsys.readouterr().out
