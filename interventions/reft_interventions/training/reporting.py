"""What a run tells its caller while it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .loss import Evaluation


class Reporter(Protocol):
    """Shows a run's progress."""

    def preparing(self, num_tokens: int, /) -> None:
        """The unedited tokens of all prompts go through the base model once."""

    def started(self, num_steps: int, first_step: int, num_parameters: int, /) -> None:
        """Training begins, or goes on after `first_step` of its `num_steps` optimizer steps."""

    def stepped(self, step: int, loss: float, num_tokens: int, /) -> None:
        """Optimizer step `step`, counted from 1, is done; the loss is per answer token."""

    def evaluated(self, label: str, evaluation: Evaluation, /) -> None:
        """Held-out rows were scored; `label` says when."""


class SilentReporter:
    """Shows nothing."""

    def preparing(self, *_: object) -> None:
        return

    def started(self, *_: object) -> None:
        return

    def stepped(self, *_: object) -> None:
        return

    def evaluated(self, *_: object) -> None:
        return
