"""What is noted of each request, and how its figures are defined."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field, fields
from typing import Any

__all__ = ["RequestRecord"]


@dataclass(slots=True)
class RequestRecord:
    """One request. Times are seconds after the start of the load.

    Args:
        index: of its session in the plan; `turn` counts within the session.
        intended_s: when it was due. In an open loop latency counts from here, also if it was sent later.
        sent_s: when it was really sent.
        first_s: when the first token came; None = none came.
        end_s: when the answer, or the failure, was complete.
        gaps_s: from each piece of the answer to the next.
        is_approximate: the server reported no usage: `completion_tokens` counts pieces.
        queue_s: how long it waited, where the server tells.
        answered_by: the intervention that the server says it applied; None = it said nothing, "" = the base model.
        error: what went wrong, as a short stable word; None = nothing.
    """

    index: int
    turn: int = 0
    intervention: str | None = None
    tenant: str | None = None
    is_warmup: bool = False
    intended_s: float = 0.0
    sent_s: float = 0.0
    first_s: float | None = None
    end_s: float = 0.0
    gaps_s: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int = 0
    is_approximate: bool = False
    queue_s: float | None = None
    finish_reason: str | None = None
    answered_by: str | None = None
    error: str | None = None
    error_message: str = ""
    text: str = ""

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token."""
        return None if self.first_s is None else self.first_s - self.intended_s

    @property
    def e2e_s(self) -> float:
        """Until the answer was complete."""
        return self.end_s - self.intended_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first: (e2e - TTFT) / (n - 1); None for a single token."""
        if self.first_s is None or self.completion_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.completion_tokens - 1)

    def to_json(self) -> dict[str, Any]:
        """Every field, for another process."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {**values, "gaps_s": [round(gap, 6) for gap in self.gaps_s]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RequestRecord:
        """What `to_json` wrote."""
        return cls(**{**values, "gaps_s": array("d", values["gaps_s"])})
