"""A request on its way through the engine."""

from __future__ import annotations

import itertools
import random
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from reft_interventions.folded import FoldedEdit, FoldedSet, SiteKey
from reft_interventions.positions import Interval, count, intersect

from .kv_cache import SharedPrefix
from .kv_memory import BLOCK_SIZE, KVSlot
from .logits_processor import logits_processor
from .prompt_scores import PromptScores
from .stream import NullStream, QueueStream
from .types import GenerationRequest, TokenOutput

if TYPE_CHECKING:
    from .prefix_cache import Block

EditKey = tuple[str, int, tuple[Interval, ...]]
"""Content hash of a folded set (scale, rank dimensions and source included), and the index of one of its interventions;
for one whose tokens have edits of their own all its positions too, which tell what a token's is."""

_PRIORITY_STEP_S = 10.0  # one level of priority is worth so much waiting: no level can keep another out for ever
_BEHIND_ATTENTION = frozenset(
    {"attention_value_output", "attention_output", "mlp_input", "mlp_activation", "mlp_output", "block_output"}
)
_arrivals = itertools.count()

EXPECTED = -1
"""Stands in `token_ids` for a token that the device is still choosing."""


class UniformNumbers(random.Random):
    """Numbers in [0, 1) that a sequence's tokens are drawn by, one for each token."""

    def __init__(self, seed: int | None) -> None:
        super().__init__(seed)
        self._given_back: list[float] = []

    def random(self) -> float:
        return self._given_back.pop() if self._given_back else super().random()

    def give_back(self, number: float) -> None:
        """The last number was not used: no token came of it."""
        self._given_back.append(number)


class BlockContent(NamedTuple):
    """What the K and V of a run of tokens depend on, besides what comes before them.

    `edits` are (first, end, key), relative to the run, in the order in which they apply.
    """

    token_ids: tuple[int, ...]
    edits: tuple[tuple[int, int, EditKey], ...]

    def num_common_tokens(self, other: BlockContent) -> int:
        """For how many tokens from the start on both are the same, edits included."""
        num_tokens = 0
        for ours, theirs in zip(self.token_ids, other.token_ids, strict=False):
            if ours != theirs or self._keys_at(num_tokens) != other._keys_at(num_tokens):
                break
            num_tokens += 1
        return num_tokens

    def _keys_at(self, index: int) -> list[EditKey]:
        return [key for first, end, key in self.edits if first <= index < end] if self.edits else []


@dataclass(frozen=True)
class SequenceEdit:
    """One intervention of one sequence, its positions resolved against the prompt's length.

    `order` counts the edits of this sequence at the same site: the second one sees the first one's result.
    """

    site: SiteKey
    order: int
    edit: FoldedEdit
    intervals: tuple[Interval, ...]
    key: EditKey

    def rows(self, start: int, end: int) -> list[int]:
        """Edited positions within `[start, end)`."""
        return intersect(self.intervals, start, end)

    def within(self, start: int, end: int) -> SequenceEdit:
        """What edits the positions within `[start, end)`: itself, unless each token has an edit of its own."""
        if not self.edit.differs_by_token:
            return self
        return replace(self, edit=self.edit.of_tokens(count(self.intervals, start), count(self.intervals, end)))


class Sequence:
    """Token ids so far, how many of them are in the KV cache, and what is needed to choose the next one.

    Args:
        num_layers: of the model: an edit behind the last layer's attention changes no K or V.
        eos_token_ids: of the model: what `min_tokens` holds back.
    """

    def __init__(
        self,
        request: GenerationRequest,
        stream: QueueStream | NullStream,
        num_layers: int,
        eos_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.request = request
        self.stream = stream
        self.sampling = request.sampling
        self.token_ids = list(request.prompt_token_ids)
        self.prompt_length = len(self.token_ids)
        self.edits = resolve_edits(request.interventions, self.prompt_length)
        # The most K and V that it can need: the last token that is sampled is never computed.
        self.max_num_tokens = self.prompt_length + max(request.sampling.max_tokens - 1, 0)
        self.is_generating = request.sampling.max_tokens > 0 and not request.captures  # else its prompt is only read
        self.edits_generated = any(last is None for edit in self.edits for _, last in edit.intervals)
        self._kv_edits = tuple(edit for edit in self.edits if changes_kv(edit.site, num_layers))
        self._first_captured = min((one.positions[0] for one in request.captures if one.positions), default=None)
        self.num_computed_tokens = 0
        self.slot: KVSlot | None = None
        self.shared_prefix: SharedPrefix | None = None
        self.cached_block: Block | None = None
        self.num_cached_blocks = 0
        self.num_cached_tokens: int | None = None  # reused at the first admission
        self.waits_for: tuple[Sequence, int] | None = None
        self.has_run = False
        self.is_finished = False
        self.num_expected_tokens = 0  # at the end of `token_ids`: their steps are in flight
        self.queue_time_s = 0.0  # until it first ran
        self.random = UniformNumbers(request.sampling.seed)
        num_prompt_logprobs = request.sampling.num_prompt_logprobs
        self.prompt_scores = None if num_prompt_logprobs is None else PromptScores(self.token_ids, num_prompt_logprobs)
        grammar = request.sampling.grammar
        self.matcher = None if grammar is None else grammar.matcher()
        self.logits_processor = logits_processor(request.sampling, self.prompt_length, eos_token_ids, self.matcher)
        # Something between two of its steps is decided on the host, besides when it ends.
        self.needs_host = bool(
            self.logits_processor is not None
            or request.sampling.num_logprobs is not None
            or self.prompt_scores is not None
            or request.captures
        )
        self.arrival_time_s = time.monotonic()
        self.order = (self.arrival_time_s + _PRIORITY_STEP_S * request.priority, next(_arrivals))

    @property
    def num_generated_tokens(self) -> int:
        """Tokens behind the prompt, without those that are expected."""
        return len(self.token_ids) - self.num_expected_tokens - self.prompt_length

    @property
    def is_decoding(self) -> bool:
        """Whether one token is to be computed, and it is not the last one."""
        num_tokens = len(self.token_ids)
        return num_tokens == self.num_computed_tokens + 1 and num_tokens <= self.max_num_tokens

    def expect_token(self) -> None:
        """A step was launched that chooses the next token."""
        self.token_ids.append(EXPECTED)
        self.num_expected_tokens += 1

    def receive_token(self, token_id: int) -> None:
        """The first of the expected tokens is known now."""
        self.token_ids[len(self.token_ids) - self.num_expected_tokens] = token_id
        self.num_expected_tokens -= 1

    def expect_nothing(self) -> None:
        """Forget what is expected, and the K and V of the last token that is known, which goes into a later step."""
        if self.num_expected_tokens:
            del self.token_ids[-self.num_expected_tokens :]
            self.num_expected_tokens = 0
            self.num_computed_tokens = min(self.num_computed_tokens, len(self.token_ids) - 1)

    @property
    def num_pending_tokens(self) -> int:
        """Tokens that are known or expected but not in the KV cache yet: the prompt's rest, or the one just sampled."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def prompt_tokens(self) -> tuple[TokenOutput, ...]:
        """The prompt's tokens with their logprobs, where they are asked for."""
        return () if self.prompt_scores is None else tuple(self.prompt_scores.outputs)

    @property
    def has_finite_scores(self) -> bool:
        """False where logits of the prompt held NaN or infinity."""
        return self.prompt_scores is None or self.prompt_scores.is_finite

    @property
    def num_reusable_tokens(self) -> int:
        """The most tokens whose K and V may come from a cache: one is left to compute, and all that are looked at."""
        if self.prompt_scores is not None and not self.prompt_scores.is_complete:
            return 0
        limit = len(self.token_ids) - 1
        return limit if self._first_captured is None else min(limit, self._first_captured)

    @property
    def num_shared_tokens(self) -> int:
        """Tokens at the start whose K and V are in a shared prefix, not in `slot`."""
        return 0 if self.shared_prefix is None else self.shared_prefix.num_tokens

    def block_content(self, start: int, end: int) -> BlockContent:
        """What the K and V of positions `[start, end)` depend on, besides those before them."""
        edits = tuple(
            (max(first, start) - start, (end if last is None else min(last, end)) - start, edit.key)
            for edit in self._kv_edits
            for first, last in edit.intervals
            if first < end and (last is None or last > start)
        )
        return BlockContent(tuple(self.token_ids[start:end]), edits)

    @cached_property
    def prompt_chain(self) -> tuple[int, ...]:
        """A hash per whole block of the prompt, of its content and all before it: to compare two prompts quickly."""
        hashes: list[int] = []
        for start in range(0, self.prompt_length - BLOCK_SIZE + 1, BLOCK_SIZE):
            content = self.block_content(start, start + BLOCK_SIZE)
            hashes.append(hash((hashes[-1] if hashes else 0, content)))
        return tuple(hashes)

    def has_edits_in(self, start: int) -> bool:
        """Whether any token from `start` on can be edited: False for every decode step of a prompt-only set."""
        return bool(self.edits) and (self.edits_generated or start < self.prompt_length)


def resolve_edits(sets: tuple[FoldedSet, ...], prompt_length: int) -> tuple[SequenceEdit, ...]:
    """The edits of several sets applied in order, with absolute positions."""
    edits: list[SequenceEdit] = []
    num_at_site: dict[SiteKey, int] = {}
    for folded in sets:
        for index, intervention in enumerate(folded.interventions):
            intervals = intervention.positions.intervals(prompt_length)
            if not intervals:
                continue
            order = num_at_site.get(intervention.site, 0)
            num_at_site[intervention.site] = order + 1
            key = (folded.content_hash, index, intervals if intervention.edit.differs_by_token else ())
            edits.append(SequenceEdit(intervention.site, order, intervention.edit, intervals, key))
    return tuple(edits)


def changes_kv(site: SiteKey, num_layers: int) -> bool:
    """Whether an edit at this site reaches any K or V: not behind the attention of the last layer."""
    layer, component = site
    return layer < num_layers - 1 or component not in _BEHIND_ATTENTION
