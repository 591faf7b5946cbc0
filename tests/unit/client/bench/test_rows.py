"""Prompt files and traces."""

from __future__ import annotations

from pathlib import Path

import pytest

from reft_client import InvalidArgumentError
from reft_client.bench.rows import read_rows, tasks_of


def write(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_rows_are_read_in_order_and_empty_lines_skipped(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, '{"prompt": "a\u2028b", "task": "y"}', "", '{"turns": ["b", "c"], "task": "x"}'))
    assert [(row.prompt, row.turns) for row in rows] == [("a\u2028b", None), (None, ("b", "c"))]
    assert tasks_of(rows) == ("y", "x")


def test_trace_is_sorted_by_time(tmp_path: Path) -> None:
    path = write(tmp_path, '{"at_s": 2, "prompt_tokens": 9}', '{"at_s": 0.5, "prompt": "a"}')
    assert [row.at_s for row in read_rows(path, is_trace=True)] == [0.5, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2"),
        ('{"promt": "a"}', "promt"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}', "one of them is enough"),
        ('{"max_tokens": 0}', "max_tokens"),
        ('{"at_s": "soon"}', "at_s"),
    ],
)
def test_rows_name_the_line_at_fault(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        read_rows(write(tmp_path, '{"prompt": "a"}', line))


def test_rows_refuse_what_is_no_file_and_no_trace(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="can't read"):
        read_rows(tmp_path / "missing.jsonl")
    with pytest.raises(InvalidArgumentError, match="no rows"):
        read_rows(write(tmp_path, ""))
    with pytest.raises(InvalidArgumentError, match="at_s"):
        read_rows(write(tmp_path, '{"prompt": "a"}'), is_trace=True)
