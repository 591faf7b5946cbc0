"""Which tokens an intervention edits: pyreft's position strings and the short-prompt rules.

Source: Wu et al. 2024, arXiv:2404.03592, section 4 and appendix; pyreft's `get_intervention_locations`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from .errors import InterventionManifestError

Interval = tuple[int, int | None]
"""Half-open range of absolute token positions `[start, end)`; `end` None = every later token."""

ShortPromptRule = Literal["paper", "floor"]
Part = Literal["both", "prefix", "suffix"]
_WHOLE = ("prompt", "all", "generated")
_STRING = re.compile(r"f(?P<f>[0-9]{1,6})|l(?P<l>[0-9]{1,6})|f(?P<first>[0-9]{1,6})\+l(?P<last>[0-9]{1,6})")


@dataclass(frozen=True)
class InterventionPositions:
    """A rule that turns a request's prompt length into the positions to edit.

    Args:
        spec: `fN`, `lN`, `fN+lM`, `prompt` (every prompt token), `all` (prompt and generated), `generated`, or a
            tuple of explicit indices (negative counts from the prompt's end; those outside the prompt are skipped).
        part: which end of `fN+lM` this intervention edits; untied sets list a layer twice, `prefix` and `suffix`.
        suffix_offset: how many tokens before the prompt's end the suffix ends; 0 includes the last prompt token.
        short_prompt: `paper`: prefix at most floor(L/2), suffix at most ceil(L/2); `floor` (pyreft): both floor(L/2).

    Raises:
        InterventionManifestError: the spec can't be read.
    """

    spec: str | tuple[int, ...]
    part: Part = "both"
    suffix_offset: int = 0
    short_prompt: ShortPromptRule = "paper"

    def __post_init__(self) -> None:
        if self.suffix_offset < 0:
            raise InterventionManifestError("suffix_offset must be 0 or more", param="suffix_offset")
        if isinstance(self.spec, tuple):
            if not self.spec:
                raise InterventionManifestError("explicit positions need at least one index", param="positions")
        elif self.spec not in _WHOLE and self._first_last() == (0, 0):
            raise InterventionManifestError(
                f"positions {self.spec!r} can't be read; use fN, lN, fN+lM, prompt, all, generated or indices",
                param="positions",
            )
        first, last = self._first_last()
        if self.part != "both" and not (first and last):
            raise InterventionManifestError(
                f"part {self.part!r} needs positions fN+lM with N and M above 0, not {self.spec!r}", param="part"
            )
        if self.suffix_offset and not last:
            raise InterventionManifestError(
                f"suffix_offset needs positions with a suffix (lN or fN+lM), not {self.spec!r}", param="suffix_offset"
            )

    @property
    def is_prompt_only(self) -> bool:
        """True when no generated token is edited: decoding is then the base model's."""
        return self.spec not in ("all", "generated")

    def intervals(self, prompt_length: int) -> tuple[Interval, ...]:
        """Positions to edit for a prompt of `prompt_length` tokens: sorted, disjoint, half-open intervals."""
        length = prompt_length
        if self.spec == "prompt":
            return ((0, length),) if length else ()
        if self.spec == "all":
            return ((0, None),)
        if self.spec == "generated":
            return ((length, None),)
        if isinstance(self.spec, tuple):
            indices = {i + length if i < 0 else i for i in self.spec}
            return tuple((i, i + 1) for i in sorted(indices) if 0 <= i < length)
        first, last = self._first_last()
        num_prefix = min(first, length // 2)
        num_suffix = min(last, length // 2 if self.short_prompt == "floor" else (length + 1) // 2)
        suffix_end = max(length - self.suffix_offset, 0)
        suffix_start = max(suffix_end - num_suffix, num_prefix)
        intervals: list[Interval] = []
        if self.part != "suffix" and num_prefix:
            intervals.append((0, num_prefix))
        if self.part != "prefix" and suffix_start < suffix_end:
            intervals.append((suffix_start, suffix_end))
        return tuple(intervals)

    def _first_last(self) -> tuple[int, int]:
        match = _STRING.fullmatch(self.spec) if isinstance(self.spec, str) else None
        if match is None:
            return 0, 0
        return int(match["f"] or match["first"] or 0), int(match["l"] or match["last"] or 0)

    def may_overlap(self, other: InterventionPositions) -> bool:
        """False only where no prompt length lets both edit one token: what one set may hold at one site."""
        for one, two in ((self, other), (other, self)):
            if one.is_prompt_only and two.spec == "generated":
                return False
            is_same_rule = (one.spec, one.suffix_offset, one.short_prompt) == (
                two.spec,
                two.suffix_offset,
                two.short_prompt,
            )
            if is_same_rule and (one.part, two.part) == ("prefix", "suffix"):
                return False
            is_prefix, is_suffix = one._first_last()[1] == 0, two._first_last()[0] == 0
            if one._first_last()[0] and is_prefix and two._first_last()[1] and is_suffix and not two.suffix_offset:
                # floor(L/2) from the start and at most ceil(L/2) from the end never meet.
                return False
        return True


def count(intervals: tuple[Interval, ...], end: int) -> int:
    """How many positions below `end` lie in `intervals`, which are disjoint."""
    return sum(max(min(end if last is None else last, end) - first, 0) for first, last in intervals)


def intersect(intervals: tuple[Interval, ...], start: int, end: int) -> list[int]:
    """Absolute positions of `[start, end)` that lie in any of `intervals`, ascending."""
    positions: list[int] = []
    for first, last in intervals:
        positions.extend(range(max(first, start), end if last is None else min(last, end)))
    return positions
