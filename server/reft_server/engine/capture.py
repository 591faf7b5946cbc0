"""Hidden rows of a prompt, noted while it is prefilled: the sources of interchange interventions."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor

from reft_interventions.folded import FoldedSet, SiteKey
from reft_interventions.positions import intersect


class RowCapture:
    """The rows of one site at some positions of a prompt. The engine fills it; `rows` is whole once the stream ended.

    A position may be noted again, after a preemption or a step that failed: the last time counts.

    Args:
        positions: ascending; there may be none.
    """

    def __init__(self, site: SiteKey, positions: tuple[int, ...]) -> None:
        self.site = site
        self.positions = positions
        self._rows: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """`[num_positions, hidden_size]`, float32 on the CPU."""
        if not self.positions:
            return torch.empty(0, 0)
        if self._rows is None:
            raise RuntimeError("the prompt has not been run")
        return self._rows

    def note(self, position: int, rows: Tensor) -> None:
        """Copy what is wanted of `rows`, `[num_rows, hidden_size]`, those of `position` and the ones after it."""
        if self._rows is None:
            self._rows = torch.full((len(self.positions), rows.shape[1]), torch.nan)
        first = bisect_left(self.positions, position)
        last = bisect_left(self.positions, position + rows.shape[0])
        if first < last:
            wanted = torch.tensor(self.positions[first:last], device=rows.device) - position
            self._rows[first:last] = rows[wanted].to("cpu", torch.float32)


def capture_sources(folded: FoldedSet, num_source_tokens: int) -> tuple[RowCapture, ...]:
    """What to note of a source prompt for a set that needs one, in the order of its `open_interventions`."""
    return tuple(
        RowCapture(one.site, tuple(intersect(one.positions.intervals(num_source_tokens), 0, num_source_tokens)))
        for one in folded.open_interventions
    )
