"""Which intervention a request asks for, and on whose behalf it is sent."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InvalidArgumentError

__all__ = ["Mix", "expand_names"]

_KINDS = ("none", "identical", "distinct", "uniform", "skewed", "tenant", "task")
MAX_NAMES = 100_000


def expand_names(text: str) -> tuple[str, ...]:
    """Read `haiku,pirate` or `set-{0..63}`: names, separated by commas, each with at most one range.

    Raises:
        InvalidArgumentError: no name, or a range that is empty or too long.
    """
    names: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", part)
        if found is None:
            names.append(part)
            continue
        before, first, last, after = found.groups()
        if not 0 <= int(last) - int(first) < MAX_NAMES:
            raise InvalidArgumentError(f"{part!r}: the range must go upwards, over at most {MAX_NAMES} names")
        names += [f"{before}{number}{after}" for number in range(int(first), int(last) + 1)]
    if not names:
        raise InvalidArgumentError(f"{text!r} names nothing; write haiku,pirate or set-{{0..63}}")
    return tuple(names)


@dataclass(frozen=True)
class Mix:
    """A choice among K names.

    Semantics, for request i with names n[0..K-1]:
        none       the base model
        identical  n[0]
        distinct   n[i mod K]
        uniform    each name with probability 1/K
        zipf:s     n[k] with probability proportional to 1/(k+1)^s
        skewed     n[0] three times out of four; else, with equal odds, the base model or one of the others
        tenant     n[t mod K] for the t-th tenant
        task       the name that belongs to the prompt's task: n[j mod K] for the j-th task, or the task's own name
    """

    kind: str
    names: tuple[str, ...] = ()
    exponent: float = 0.0
    tasks: tuple[str, ...] = ()
    _cumulative: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        weights = [1 / (rank + 1) ** self.exponent for rank in range(len(self.names))]
        object.__setattr__(self, "_cumulative", tuple(itertools.accumulate(weights)))

    @classmethod
    def parse(cls, text: str, names: Sequence[str], tasks: Sequence[str] = ()) -> Mix:
        """Read one of the kinds above.

        Raises:
            InvalidArgumentError: no such kind, or a kind that needs names or tasks and has none.
        """
        kind, _, number = text.partition(":")
        exponent = 0.0
        if kind == "zipf":
            try:
                exponent = float(number)
            except ValueError:
                exponent = math.nan
            if not 0 <= exponent <= 10:
                raise InvalidArgumentError(f"{text!r}: write zipf:s with s from 0 to 10, such as zipf:1.1")
        elif text not in _KINDS:
            raise InvalidArgumentError(f"{text!r} is not a mix; choose from {', '.join(_KINDS)} and zipf:s")
        if not names and kind not in ("none", "task"):
            raise InvalidArgumentError(f"the mix {text!r} chooses among names; give them with --interventions")
        if kind == "task" and not tasks:
            raise InvalidArgumentError("the mix 'task' needs prompts from a file whose rows have a `task`")
        return cls(kind, tuple(names), exponent, tuple(tasks))

    def choose(self, index: int, rng: random.Random, *, tenant: int = 0, task: str | None = None) -> str | None:
        """The intervention of request `index`; None = the base model."""
        if self.kind == "none" or (self.kind == "task" and task is None):
            return None
        if self.kind == "identical":
            return self.names[0]
        if self.kind == "distinct":
            return self.names[index % len(self.names)]
        if self.kind == "tenant":
            return self.names[tenant % len(self.names)]
        if self.kind == "task":
            return self.names[self.tasks.index(task or "") % len(self.names)] if self.names else task
        if self.kind == "skewed":
            draw = rng.random()
            if draw < 0.75 or (draw >= 0.875 and len(self.names) == 1):
                return self.names[0]
            return None if draw < 0.875 else rng.choice(self.names[1:])
        return rng.choices(self.names, cum_weights=self._cumulative)[0]
