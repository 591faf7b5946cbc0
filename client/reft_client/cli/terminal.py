"""What the commands print: answers as they come, tables for people, tab-separated rows and JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

from pydantic import BaseModel
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..errors import InvalidArgumentError

__all__ = ["Terminal", "format_size", "format_time", "printable"]

_GAP = 2
_FOLDED = 24
"""Characters in which a longer cell still reads well."""
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """Replace control characters, so that what a model or a file says can't drive the terminal."""
    return text.translate(_CONTROLS)


def format_size(num_bytes: int) -> str:
    """Bytes for people."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def format_time(unix_s: int) -> str:
    """Unix seconds as UTC, to the minute."""
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M")


def _width(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Of a table whose longest cells are folded."""
    columns = zip(header, *rows, strict=True)
    return sum(min(max(map(len, column)), _FOLDED) + _GAP for column in columns) - _GAP


@dataclass(frozen=True)
class Terminal:
    """Standard streams of one run."""

    stdin: TextIO
    stdout: TextIO
    stderr: TextIO

    @classmethod
    def standard(cls) -> Terminal:
        """The process's own streams, as they are now."""
        return cls(sys.stdin, sys.stdout, sys.stderr)

    def read(self) -> str:
        """All of standard input.

        Raises:
            InvalidArgumentError: it is not text.
        """
        try:
            return self.stdin.read()
        except UnicodeDecodeError as error:
            raise InvalidArgumentError(f"standard input is not {error.encoding} text") from error

    def write(self, text: str) -> None:
        """Write a piece of an answer at once."""
        self.stdout.write(printable(text) if self.stdout.isatty() else text)
        self.stdout.flush()

    def line(self, text: str = "") -> None:
        """Write a line."""
        self.write(f"{text}\n")

    def answer(self, model: BaseModel, text: str, *, is_json: bool) -> None:
        """Write what the server said: as JSON for programs, or a line that says it to people."""
        if is_json:
            self.json(model)
        else:
            self.line(text)

    def json(self, model: BaseModel, *, indent: int | None = 2) -> None:
        """Write what the server said, as JSON."""
        self.stdout.write(model.model_dump_json(indent=indent) + "\n")
        self.stdout.flush()

    def note(self, text: str) -> None:
        """Write a line to standard error."""
        self.stderr.write(f"{printable(text)}\n")
        self.stderr.flush()

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], optional: Sequence[str] = ()) -> None:
        """Write a table: aligned on a terminal, tab-separated elsewhere.

        Args:
            optional: columns that a terminal too narrow for all goes without, the first one first.
        """
        if not self.stdout.isatty():
            for row in (header, *rows):
                self.stdout.write(
                    "\t".join(printable(cell).replace("\t", " ").replace("\n", " ") for cell in row) + "\n"
                )
            return
        console = Console(file=self.stdout)
        for name in optional:
            if _width(header, rows) <= console.width:
                break
            left_out = header.index(name)
            header, *rows = ([*row[:left_out], *row[left_out + 1 :]] for row in (header, *rows))
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console.print(table)

    def progress(self) -> Progress:
        """A bar on standard error; silent where that is no terminal."""
        console = Console(file=self.stderr)
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
