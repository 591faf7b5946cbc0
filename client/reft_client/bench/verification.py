"""Did every request get under load what it gets alone?

Each distinct session (prompts and intervention) is first run alone, greedily, to learn its reference; then every
answer under load is compared with it, text by text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ReftClientError
from .load import Load
from .plan import Plan, Session
from .records import RequestRecord

__all__ = ["References", "Verification", "VerificationError", "learn_references", "verify"]

MAX_LISTED = 100
References = dict[tuple[object, ...], tuple[str, ...]]


class VerificationError(ReftClientError):
    """A reference could not be learned: the request failed even alone."""


@dataclass(frozen=True)
class Mismatch:
    """One answer that is not its reference.

    Args:
        answered_by: what the server says it applied; None = it says nothing.
    """

    index: int
    turn: int
    intervention: str | None
    tenant: str | None
    answered_by: str | None
    intended_s: float
    expected: str
    actual: str


@dataclass(frozen=True)
class Verification:
    """The outcome; failed requests are not compared, they are errors."""

    num_references: int
    num_compared: int
    num_mismatches: int
    mismatches: tuple[Mismatch, ...]

    def to_json(self) -> dict[str, Any]:
        """Every field; the first `MAX_LISTED` mismatches with both texts."""
        return asdict(self)


async def learn_references(plan: Plan, load: Load, on_progress: Callable[[int, int], None]) -> References:
    """Run every distinct session of the plan alone.

    Args:
        load: sends them; nothing else is under way.
        on_progress: called with the number learned and the number of all.

    Raises:
        VerificationError: one failed.
    """
    sessions: dict[tuple[object, ...], Session] = {}
    for index in range(plan.num_sessions or 0):
        session = plan.session(index)
        sessions.setdefault(_key(session), session)
    references: References = {}
    for key, session in sessions.items():
        records = await load.converse(session)
        if records[-1].error is not None:
            name = session.intervention or "the base model"
            raise VerificationError(f"no reference for {name}: {records[-1].error}: {records[-1].error_message}")
        references[key] = tuple(record.text for record in records)
        on_progress(len(references), len(sessions))
    return references


def verify(plan: Plan, records: Sequence[RequestRecord], references: References) -> Verification:
    """Compare every answer, those of the warm-up too."""
    answered = [record for record in records if record.error is None]
    mismatches: list[Mismatch] = []
    for record in answered:
        expected = references[_key(plan.session(record.index))][record.turn]
        wanted = (record.intervention or "").partition("@")[0]
        is_other = record.answered_by is not None and record.answered_by != wanted
        if record.text != expected or is_other:
            mismatches.append(
                Mismatch(
                    record.index,
                    record.turn,
                    record.intervention,
                    record.tenant,
                    record.answered_by,
                    round(record.intended_s, 6),
                    expected,
                    record.text,
                )
            )
    return Verification(len(references), len(answered), len(mismatches), tuple(mismatches[:MAX_LISTED]))


def _key(session: Session) -> tuple[object, ...]:
    """What the answers depend on."""
    return (session.turns, session.intervention)
