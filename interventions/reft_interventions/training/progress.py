"""What a run shows: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .loss import Evaluation

_LINES_PER_RUN = 40


class ProgressReporter:
    """A bar with loss, tokens/s and the time left; about forty plain lines when the console is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}"),
            TextColumn("{task.fields[rate]:.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._num_steps = self._first_step = self._num_tokens = 0
        self._started_s = 0.0
        self._smooth_loss: float | None = None

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def preparing(self, num_tokens: int) -> None:
        """The unedited tokens of all prompts go through the base model once."""
        self._console.print(f"reading {num_tokens:,} prompt tokens that no edit changes; steps then skip them")

    def started(self, num_steps: int, first_step: int, num_parameters: int) -> None:
        """Training begins, or goes on after `first_step` steps."""
        self._num_steps, self._first_step, self._started_s = num_steps, first_step, time.monotonic()
        self._task = self._bar.add_task("training", total=num_steps, completed=first_step, loss=0.0, rate=0.0)
        self._console.print(f"{num_parameters:,} parameters, {num_steps} steps")

    def stepped(self, step: int, loss: float, num_tokens: int) -> None:
        """An optimizer step is done; the loss shown is a running mean."""
        self._num_tokens += num_tokens
        previous = self._smooth_loss
        self._smooth_loss = loss if previous is None else 0.9 * previous + 0.1 * loss
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        rate = self._num_tokens / elapsed_s
        if self._task is not None:
            self._bar.update(self._task, completed=step, loss=self._smooth_loss, rate=rate)
        interval = max(self._num_steps // _LINES_PER_RUN, 1)
        if not self._console.is_terminal and (step % interval == 0 or step == self._num_steps):
            left_s = elapsed_s / (step - self._first_step) * (self._num_steps - step)
            self._console.print(
                f"step {step}/{self._num_steps} loss {self._smooth_loss:.4f} {rate:.0f} tokens/s {left_s:.0f} s left"
            )

    def evaluated(self, label: str, evaluation: Evaluation) -> None:
        """Held-out rows were scored."""
        self._console.print(
            f"held out, {label}: loss {evaluation.loss:.4f}, exact match {evaluation.exact_match:.1%} "
            f"of {evaluation.num_examples}"
        )
