"""A run's progress as JSON lines in a file, for the program that started it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .reporting import Reporter

if TYPE_CHECKING:
    from .loss import Evaluation


class EventLog:
    """Appends one JSON object a line: `event`, `time` (Unix, seconds) and the event's own fields.

    Args:
        path: the file, created when the first event comes; None = nothing is written.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; a reader sees whole lines only, or the beginning of the last."""
        if self._path is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


class EventReporter:
    """Writes what a run reports to `log`, and passes it on to `inner`."""

    def __init__(self, log: EventLog, inner: Reporter) -> None:
        self._log = log
        self._inner = inner

    def preparing(self, num_tokens: int) -> None:
        """The unedited tokens of all prompts go through the base model once."""
        self._log.write("preparing", num_tokens=num_tokens)
        self._inner.preparing(num_tokens)

    def started(self, num_steps: int, first_step: int, num_parameters: int) -> None:
        """Training begins, or goes on after `first_step` steps."""
        self._log.write("started", num_steps=num_steps, first_step=first_step, num_parameters=num_parameters)
        self._inner.started(num_steps, first_step, num_parameters)

    def stepped(self, step: int, loss: float, num_tokens: int) -> None:
        """An optimizer step is done."""
        self._log.write("stepped", step=step, loss=loss, num_tokens=num_tokens)
        self._inner.stepped(step, loss, num_tokens)

    def evaluated(self, label: str, evaluation: Evaluation) -> None:
        """Held-out rows were scored."""
        self._log.write(
            "evaluated",
            label=label,
            loss=evaluation.loss,
            exact_match=evaluation.exact_match,
            num_examples=evaluation.num_examples,
        )
        self._inner.evaluated(label, evaluation)
