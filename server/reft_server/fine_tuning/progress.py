"""What a training process says of its run, read from the file that it appends to."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MAX_METRIC_EVENTS = 200


class ProgressReader:
    """Follows the file of `reft-train --events`.

    Args:
        path: the file, which may not be there yet.
        offset: bytes to pass over: those of a run that was cut off.
    """

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._path = path
        self._offset = offset
        self._num_steps = 0
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] | None = None

    def read_new(self) -> list[dict[str, Any]]:
        """The events whose lines have ended since the last call."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole, _, _ = data.rpartition(b"\n")
        self._offset += len(whole) + (1 if whole else 0)
        events = list(_parse_lines(whole))
        for event in events:
            self._follow(event)
        return events

    def is_shown(self, step: int) -> bool:
        """Whether a step's loss becomes an event of the job; the results have them all."""
        return step % max(1, self._num_steps // _MAX_METRIC_EVENTS) == 0 or step == self._num_steps

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all; 0 until the run says so."""
        return self._num_steps

    @property
    def estimated_finish(self) -> float | None:
        """Unix seconds, by the mean speed so far; None until there is one."""
        if self._first is None or self._last is None or self._last[0] <= self._first[0]:
            return None
        rate_s = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        return time.time() + rate_s * (self._num_steps - self._last[0])

    def _follow(self, event: dict[str, Any]) -> None:
        if event["event"] == "started":
            self._num_steps = event["num_steps"]
            self._first = (event["first_step"], event["time"])
        elif event["event"] == "stepped":
            self._last = (event["step"], event["time"])


def results_of(path: Path) -> tuple[bytes, int]:
    """The losses of a whole run as CSV, and the tokens that its steps read.

    A step that was computed again after a restart counts once, as it was computed last.
    """
    steps: dict[int, dict[str, Any]] = {}
    last_step = 0
    for event in _parse_lines(path.read_bytes()):
        if event["event"] == "stepped":
            last_step = event["step"]
            steps[last_step] = {"step": last_step, "train_loss": event["loss"], "num_tokens": event["num_tokens"]}
        elif event["event"] == "evaluated":
            scores = {"valid_loss": event["loss"], "valid_exact_match": event["exact_match"]}
            step = 0 if event["label"] == "before" else last_step
            steps[step] = {"step": step} | steps.get(step, {}) | scores
    text = io.StringIO()
    columns = ("step", "train_loss", "valid_loss", "valid_exact_match")
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(steps[step] for step in sorted(steps))
    return text.getvalue().encode(), sum(row.get("num_tokens", 0) for row in steps.values())


def has_finished(path: Path) -> bool:
    """Whether the run has written its set, whole."""
    return path.is_file() and any(event["event"] == "finished" for event in _parse_lines(path.read_bytes()))


def _parse_lines(data: bytes) -> Iterator[dict[str, Any]]:
    for line in data.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # cut off when its process was ended
        if isinstance(event, dict) and "event" in event:
            yield event
