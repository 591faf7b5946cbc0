"""Objectives of latency, and which requests met them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import InvalidArgumentError
from .records import RequestRecord

__all__ = ["Slo", "parse_seconds"]

_UNITS = (("ms", 1e-3), ("us", 1e-6), ("s", 1.0))


@dataclass(frozen=True)
class Slo:
    """Upper bounds, in seconds; None = no bound. `itl` bounds every gap of an answer, not their mean."""

    ttft: float | None = None
    itl: float | None = None
    tpot: float | None = None
    e2e: float | None = None

    @classmethod
    def parse(cls, text: str) -> Slo:
        """Read `ttft:500ms,itl:50ms,e2e:10s`; a number without a unit is in seconds.

        Raises:
            InvalidArgumentError: an unknown name, a name given twice, or no positive time.
        """
        bounds: dict[str, float] = {}
        known = [item.name for item in fields(cls)]
        for part in text.split(","):
            name, _, value = part.strip().partition(":")
            if name not in known or name in bounds:
                raise InvalidArgumentError(f"{part!r}: give each of {', '.join(known)} at most once, as ttft:500ms")
            bounds[name] = parse_seconds(value)
        return cls(**bounds)

    @property
    def is_empty(self) -> bool:
        """Nothing is bounded: every answer is good."""
        return self == Slo()

    def is_met_by(self, record: RequestRecord) -> bool:
        """The request was answered within every bound."""
        if record.error is not None or record.ttft_s is None:
            return False
        return (
            _within(record.ttft_s, self.ttft)
            and _within(max(record.gaps_s, default=0.0), self.itl)
            and _within(record.tpot_s or 0.0, self.tpot)
            and _within(record.e2e_s, self.e2e)
        )


def parse_seconds(text: str) -> float:
    """Read `500ms`, `2s` or `2`.

    Raises:
        InvalidArgumentError: not a positive time.
    """
    number, unit = text, 1.0
    for suffix, factor in _UNITS:
        if text.endswith(suffix):
            number, unit = text.removesuffix(suffix), factor
            break
    try:
        value = float(number) * unit
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise InvalidArgumentError(f"{text!r} is not a positive time; write 500ms or 2s")
    return value


def _within(value: float, bound: float | None) -> bool:
    return bound is None or value <= bound
