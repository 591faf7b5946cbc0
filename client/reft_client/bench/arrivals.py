"""When requests of an open loop are due: an arrival process of mean rate 1, stretched by the wanted rate."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import InvalidArgumentError

__all__ = ["ArrivalProcess", "Rate", "arrival_times"]


@dataclass(frozen=True)
class ArrivalProcess:
    """The shape of the gaps between arrivals.

    Args:
        variation: standard deviation over mean of the gaps: 0 = constant, 1 = Poisson, above 1 = bursts (gamma).
    """

    variation: float

    @classmethod
    def parse(cls, text: str) -> ArrivalProcess:
        """Read `constant`, `poisson` or `gamma:VARIATION`.

        Raises:
            InvalidArgumentError: it is none of these.
        """
        if text in ("constant", "poisson"):
            return cls(float(text == "poisson"))
        kind, _, number = text.partition(":")
        try:
            variation = float(number)
        except ValueError:
            variation = math.nan
        if kind != "gamma" or not 0 < variation <= 100:
            raise InvalidArgumentError(f"{text!r} is not an arrival process; write constant, poisson or gamma:3")
        return cls(variation)

    def gaps(self, rng: random.Random) -> Iterator[float]:
        """Gaps of mean 1, without end."""
        if self.variation == 0:
            while True:
                yield 1.0
        shape = 1.0 / self.variation**2  # a gamma variable's variation is 1 / sqrt(shape); shape 1 is exponential
        while True:
            yield rng.gammavariate(shape, 1.0 / shape)


@dataclass(frozen=True)
class Rate:
    """Requests per second: `start`, moving in a straight line to `end` within `ramp_s`, and `end` from then on."""

    start: float
    end: float
    ramp_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> tuple[float, float]:
        """Read `5` or `1:20`: start and end of the ramp.

        Raises:
            InvalidArgumentError: it is neither.
        """
        first, _, last = text.partition(":")
        try:
            start, end = float(first), float(last or first)
        except ValueError as error:
            raise InvalidArgumentError(f"{text!r} is not a rate; write 5, or 1:20 for a ramp") from error
        if not (0 <= start < math.inf and 0 < end < math.inf):
            raise InvalidArgumentError(f"{text!r}: rates are positive; only a ramp may start at 0")
        return start, end

    def time_of(self, count: float) -> float:
        """Seconds until `count` requests are due: the inverse of the rate's integral."""
        slope = (self.end - self.start) / self.ramp_s if self.ramp_s > 0 else 0.0
        in_ramp = self.ramp_s * (self.start + self.end) / 2
        if count >= in_ramp:
            return self.ramp_s + (count - in_ramp) / self.end
        # start*t + slope/2*t^2 = count, in the form that loses no digits where the slope is small
        root = math.sqrt(max(0.0, self.start**2 + 2 * slope * count))
        return 2 * count / (self.start + root) if count > 0 else 0.0


def arrival_times(process: ArrivalProcess, rate: Rate, rng: random.Random) -> Iterator[float]:
    """Seconds after the start at which requests are due, without end; never decreasing.

    The first is due after one gap, except that a constant process starts at 0.
    """
    count = -1.0 if process.variation == 0 else 0.0
    for gap in process.gaps(rng):
        count += gap
        yield rate.time_of(count)
