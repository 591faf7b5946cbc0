"""JSONL files of prompts, and of traces: one JSON object a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InvalidArgumentError
from ..types.base import FiniteFloat, Int, Text

__all__ = ["Row", "RowMessage", "read_rows", "tasks_of"]


class RowMessage(BaseModel):
    """One turn of a conversation that is written out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Text
    content: Text


class Row(BaseModel):
    """One request of a file. What it leaves out is chosen as for a synthetic one.

    Args:
        prompt: its text.
        messages: a conversation instead; needs the chat endpoint.
        turns: what a user says, turn after turn; the answers in between are the server's.
        prompt_tokens: for a trace without texts: the length of a synthetic prompt.
        max_tokens: the longest answer.
        task: for the mix `task`.
        intervention: asks for this one, whatever the mix; an empty text asks for the base model.
        user: sends it on behalf of this tenant.
        at_s: for a trace: when it is due, in seconds; only differences count.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Text | None = None
    messages: Annotated[tuple[RowMessage, ...], Field(min_length=1)] | None = None
    turns: Annotated[tuple[Text, ...], Field(min_length=1)] | None = None
    prompt_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    task: Text | None = None
    intervention: Text | None = None
    user: Text | None = None
    at_s: FiniteFloat | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Row:
        given = [name for name in ("prompt", "messages", "turns", "prompt_tokens") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"gives {' and '.join(given)}; one of them is enough")
        return self


def read_rows(path: Path, *, is_trace: bool = False) -> tuple[Row, ...]:
    """Read a file; empty lines are skipped.

    Args:
        is_trace: every row must have `at_s`; rows are sorted by it.

    Raises:
        InvalidArgumentError: the file can't be read, is empty, or a row is malformed; the line is named.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgumentError(f"can't read {path}: {error}") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = Row.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise InvalidArgumentError(f"{path}, line {number}: {f'{place}: ' if place else ''}{message}") from error
        if is_trace and row.at_s is None:
            raise InvalidArgumentError(f"{path}, line {number}: a trace needs `at_s`, in seconds, in every row")
        rows.append(row)
    if not rows:
        raise InvalidArgumentError(f"{path} has no rows")
    return tuple(sorted(rows, key=_due) if is_trace else rows)


def tasks_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The tasks that rows name, in order of appearance."""
    return tuple(dict.fromkeys(row.task for row in rows if row.task is not None))


def _due(row: Row) -> float:
    return row.at_s or 0.0
