"""What reaches a terminal, and what a pipe."""

from __future__ import annotations

import io
import re

import pytest

from reft_client.cli.terminal import Terminal, format_size, format_time, printable


class Screen(io.StringIO):
    """A standard stream that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


def test_terminal_aligns_tables_and_disarms_what_it_prints() -> None:
    screen = Screen()
    terminal = Terminal(io.StringIO(), screen, Screen())
    terminal.write("\x1b[31mred")
    terminal.table(("name", "value"), [("a", "[bold]\x1b[2J"), ("bcdef", "2")])
    text = screen.getvalue()
    assert "\ufffd[31mred" in text
    assert "[bold]\ufffd[2J" in text
    assert "\x1b[31m" not in text
    assert "bcdef  2" in text


@pytest.mark.parametrize(
    ("width", "shown"),
    [(80, ["name", "note", "size", "time"]), (24, ["name", "note", "time"]), (16, ["name", "time"])],
)
def test_narrow_terminal_goes_without_columns_and_wraps_none(
    width: int, shown: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    screen = Screen()
    rows = [("a", "n" * 4, "s" * 4, "00:00"), ("b", "n" * 6, "s" * 4, "00:01")]
    Terminal(io.StringIO(), screen, Screen()).table(("name", "note", "size", "time"), rows, optional=("size", "note"))
    lines = [line.split() for line in re.sub(r"\x1b\[\d*m", "", screen.getvalue()).splitlines()]
    assert lines[0] == shown
    assert [line[0] for line in lines] == ["name", "a", "b"]


def test_long_cell_is_folded_before_a_column_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    screen = Screen()
    rows = [("a", "," * 60, "4.0 KiB")]
    Terminal(io.StringIO(), screen, Screen()).table(("name", "layers", "size"), rows, optional=("size",))
    assert "size" in screen.getvalue()
    assert "4.0 KiB" in screen.getvalue()


def test_table_in_a_pipe_has_every_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "8")
    out = io.StringIO()
    Terminal(io.StringIO(), out, io.StringIO()).table(("name", "size"), [("a", "1")], optional=("size",))
    assert out.getvalue() == "name\tsize\na\t1\n"


def test_answer_for_a_program_is_not_changed() -> None:
    out = io.StringIO()
    Terminal(io.StringIO(), out, io.StringIO()).write("\x1b[31mred")
    assert out.getvalue() == "\x1b[31mred"


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 << 20, "5.0 MiB"), (3 << 40, "3072.0 GiB")],
)
def test_format_size_picks_the_unit(num_bytes: int, expected: str) -> None:
    assert format_size(num_bytes) == expected


def test_format_time_is_utc() -> None:
    assert format_time(86_400) == "1970-01-02 00:00"


def test_printable_keeps_text_and_replaces_controls() -> None:
    assert printable("a\tb\nü\x1b]0;x\x07\x9b\x7f") == "a\tb\nü\ufffd]0;x\ufffd\ufffd\ufffd"
