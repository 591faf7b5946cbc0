"""A request on its way through the engine."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from reft_interventions.folded import FoldedEdit, FoldedSet, SiteKey
from reft_interventions.positions import Interval, intersect

from .kv_cache import KVSlot, SharedPrefix
from .stream import NullStream, QueueStream
from .types import GenerationRequest


@dataclass(frozen=True)
class SequenceEdit:
    """One intervention of one sequence, its positions resolved against the prompt's length.

    `order` counts the edits of this sequence at the same site: the second one sees the first one's result.
    """

    site: SiteKey
    order: int
    edit: FoldedEdit
    intervals: tuple[Interval, ...]

    def rows(self, start: int, end: int) -> list[int]:
        """Edited positions within `[start, end)`."""
        return intersect(self.intervals, start, end)


class Sequence:
    """Token ids so far, how many of them are in the KV cache, and what is needed to choose the next one."""

    def __init__(self, request: GenerationRequest, stream: QueueStream | NullStream) -> None:
        self.request = request
        self.stream = stream
        self.sampling = request.sampling
        self.token_ids = list(request.prompt_token_ids)
        self.prompt_length = len(self.token_ids)
        self.edits = resolve_edits(request.interventions, self.prompt_length)
        self.edits_generated = any(last is None for edit in self.edits for _, last in edit.intervals)
        self.num_computed_tokens = 0
        self.slot: KVSlot | None = None
        self.shared_prefix: SharedPrefix | None = None
        self.random = random.Random(request.sampling.seed)
        self.arrival_time_s = time.monotonic()

    @property
    def num_generated_tokens(self) -> int:
        return len(self.token_ids) - self.prompt_length

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that are known but not in the KV cache yet: the prompt's rest, or the one just sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def max_num_tokens(self) -> int:
        """The most KV this sequence can need; the last token sampled is never computed."""
        return self.prompt_length + self.sampling.max_tokens - 1

    def has_edits_in(self, start: int) -> bool:
        """Whether any token from `start` on can be edited: False for every decode step of a prompt-only set."""
        return bool(self.edits) and (self.edits_generated or start < self.prompt_length)


def resolve_edits(sets: tuple[FoldedSet, ...], prompt_length: int) -> tuple[SequenceEdit, ...]:
    """The edits of several sets applied in order, with absolute positions."""
    edits: list[SequenceEdit] = []
    num_at_site: dict[SiteKey, int] = {}
    for folded in sets:
        for intervention in folded.interventions:
            intervals = intervention.positions.intervals(prompt_length)
            if not intervals:
                continue
            order = num_at_site.get(intervention.site, 0)
            num_at_site[intervention.site] = order + 1
            edits.append(SequenceEdit(intervention.site, order, intervention.edit, intervals))
    return tuple(edits)
