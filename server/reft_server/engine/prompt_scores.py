"""Logprobs of a prompt's own tokens, gathered while the prompt is prefilled."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .logprobs import pick_logprobs
from .types import TokenOutput

if TYPE_CHECKING:
    from .sequence import Sequence

MAX_ROWS = 256
"""Rows of logits of one step that are computed for prompts: each is as wide as the vocabulary."""


class PromptScores:
    """The tokens of one prompt with their logprobs, as far as they are known; the first token has none.

    Logits at position p score the token at p + 1. What was computed stays when the sequence is preempted.
    """

    def __init__(self, token_ids: SequenceOf[int], num_logprobs: int) -> None:
        self._token_ids = tuple(token_ids)
        self._num_logprobs = num_logprobs
        self.outputs: list[TokenOutput] = [TokenOutput(token_ids[0])]
        self.is_finite = True

    @property
    def is_complete(self) -> bool:
        return len(self.outputs) == len(self._token_ids)

    def positions(self, start: int, end: int) -> range:
        """Which of the positions `[start, end)` score a token that has no logprob yet."""
        return range(max(start, len(self.outputs) - 1), min(end, len(self._token_ids) - 1))

    def max_tokens(self, start: int, max_rows: int) -> int | None:
        """How many tokens from `start` on may be computed for no more than `max_rows` scores; None = any number."""
        first = max(start, len(self.outputs) - 1)
        return None if first + max_rows >= len(self._token_ids) - 1 else first + max_rows - start

    def scored(self, logits: Tensor) -> list[TokenOutput]:
        """What the logits of the next positions, `[num_positions, vocab_size]`, say; `add` takes it over."""
        first = len(self.outputs)
        ids = self._token_ids[first : first + len(logits)]
        picked = pick_logprobs(logits.float().log_softmax(dim=-1), ids, [self._num_logprobs] * len(ids))
        return [TokenOutput(token_id, *logprobs) for token_id, logprobs in zip(ids, picked, strict=True)]

    def add(self, outputs: list[TokenOutput]) -> None:
        """Keep the scores of the next tokens."""
        self.outputs += outputs
        self.is_finite = self.is_finite and all(math.isfinite(one.logprob or 0.0) for one in outputs)


@torch.inference_mode()
def score_prompts(
    logits: Tensor, scored: SequenceOf[tuple[Sequence, int]]
) -> list[tuple[PromptScores, list[TokenOutput]]]:
    """The scores of a step.

    Args:
        logits: `[num_rows, vocab_size]`: the rows of each sequence in turn.
        scored: sequences with `prompt_scores`, and how many of the rows are theirs.
    """
    found = []
    start = 0
    for sequence, num_rows in scored:
        assert sequence.prompt_scores is not None  # the batch lists only such
        found.append((sequence.prompt_scores, sequence.prompt_scores.scored(logits[start : start + num_rows])))
        start += num_rows
    return found
