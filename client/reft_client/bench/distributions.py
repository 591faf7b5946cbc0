"""How long prompts, answers, conversations and pauses are."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import InvalidArgumentError

__all__ = ["Distribution"]

_NUM_PARAMETERS: Mapping[str, int] = MappingProxyType(
    {"fixed": 1, "uniform": 2, "normal": 2, "lognormal": 2, "exponential": 1}
)


@dataclass(frozen=True)
class Distribution:
    """A distribution of non-negative numbers.

    Args:
        kind: `fixed` value; `uniform` from, to (both included for integers); `normal` mean, standard deviation;
            `lognormal` median, sigma of the logarithm; `exponential` mean.
        parameters: in that order.
    """

    kind: str
    parameters: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> Distribution:
        """Read `128`, `uniform:64:256`, `normal:128:32`, `lognormal:128:0.5` or `exponential:2`.

        Raises:
            InvalidArgumentError: it is none of these.
        """
        kind, *numbers = text.split(":")
        if not numbers:
            kind, numbers = "fixed", [text]
        try:
            parameters = tuple(float(number) for number in numbers)
        except ValueError as error:
            raise InvalidArgumentError(f"{text!r}: {error}") from error
        if _NUM_PARAMETERS.get(kind) != len(parameters):
            forms = "128, uniform:64:256, normal:128:32, lognormal:128:0.5 or exponential:2"
            raise InvalidArgumentError(f"{text!r} is not a distribution; write it like {forms}")
        if not all(math.isfinite(value) and value >= 0 for value in parameters):
            raise InvalidArgumentError(f"{text!r}: the parameters must be finite and not negative")
        if kind == "uniform" and parameters[0] > parameters[1]:
            raise InvalidArgumentError(f"{text!r}: the lower bound comes first")
        return cls(kind, parameters)

    def sample(self, rng: random.Random) -> float:
        """One value; draws below zero become zero."""
        first, *rest = self.parameters
        if self.kind == "uniform":
            return rng.uniform(first, rest[0])
        if self.kind == "normal":
            return max(0.0, rng.normalvariate(first, rest[0]))
        if self.kind == "lognormal":
            return first * math.exp(rest[0] * rng.normalvariate(0.0, 1.0))
        if self.kind == "exponential":
            return rng.expovariate(1.0) * first
        return first

    def sample_count(self, rng: random.Random) -> int:
        """One value as a whole number, at least 1."""
        if self.kind == "uniform":
            low, high = self.parameters
            return max(1, rng.randint(math.ceil(low), max(math.ceil(low), math.floor(high))))
        return max(1, round(self.sample(rng)))
