"""What a request's own settings do to its row of logits before a token is chosen: penalties, biases, bans."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .types import SamplingParams, TokenMatcher


class LogitsProcessor:
    """Changes one sequence's rows, one step after the other; what it needs to know of the sequence it keeps itself.

    Semantics, in vLLM's order, for a row x, with n[t] = how often token t was generated and
    seen[t] = t is in the prompt or was generated:
        x[t] += logit_bias[t]
        x[t]  = -inf                                            if the grammar forbids t
        x[t]  = -inf                                            if t ends the sequence and it is below min_tokens
        x[t]  = x[t] / r if x[t] > 0 else x[t] * r              if seen[t], r = repetition_penalty
        x[t] -= frequency_penalty * n[t] + presence_penalty * (n[t] > 0)

    Where the grammar leaves nothing but an end, `min_tokens` gives way.

    Args:
        prompt_length: how many of the sequence's tokens are its prompt.
        eos_token_ids: the model's own.
        matcher: of the sequence's grammar, gone as far as its tokens.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_length: int,
        eos_token_ids: frozenset[int],
        matcher: TokenMatcher | None = None,
    ) -> None:
        self._sampling = sampling
        self._matcher = matcher
        self._prompt_length = prompt_length
        self._end_ids = sorted(sampling.stop_token_ids | (frozenset() if sampling.ignore_eos else eos_token_ids))
        self._num_counted = 0
        self._seen: Tensor | None = None  # [vocab_size], bool
        self._counts: Tensor | None = None  # [vocab_size], float32: n

    def __call__(self, row: Tensor, token_ids: SequenceOf[int]) -> None:
        """Change a row in place.

        Args:
            row: `[vocab_size]`, float32.
            token_ids: all tokens of the sequence so far; those of earlier calls and more.
        """
        sampling = self._sampling
        if sampling.logit_bias:
            ids, biases = zip(*sampling.logit_bias, strict=True)
            row[list(ids)] += torch.tensor(biases, device=row.device)
        end_ids = self._end_ids if len(token_ids) - self._prompt_length < sampling.min_tokens else []
        if self._matcher is not None:
            _forbid(row, self._matcher.allowed(), end_ids)
        elif end_ids:
            row[end_ids] = float("-inf")
        if sampling.has_penalties:
            seen, counts = self._count(token_ids, row)
            self._penalize(row, seen, counts)

    def _count(self, token_ids: SequenceOf[int], row: Tensor) -> tuple[Tensor, Tensor]:
        """Bring `seen` and `n` up to date."""
        if self._seen is None or self._counts is None:
            self._seen, self._counts = torch.zeros_like(row, dtype=torch.bool), torch.zeros_like(row)
        added = torch.tensor(token_ids[self._num_counted :], dtype=torch.int64, device=row.device)
        generated = added[max(self._prompt_length - self._num_counted, 0) :]
        self._seen[added] = True
        self._counts.index_add_(0, generated, torch.ones_like(generated, dtype=row.dtype))
        self._num_counted = len(token_ids)
        return self._seen, self._counts

    def _penalize(self, row: Tensor, seen: Tensor, counts: Tensor) -> None:
        sampling = self._sampling
        if sampling.repetition_penalty != 1:
            penalty = sampling.repetition_penalty
            row.copy_(torch.where(seen, torch.where(row > 0, row / penalty, row * penalty), row))
        if sampling.frequency_penalty:
            row.sub_(counts, alpha=sampling.frequency_penalty)
        if sampling.presence_penalty:
            row.sub_(counts.clamp(max=1), alpha=sampling.presence_penalty)


def _forbid(row: Tensor, is_allowed: NDArray[np.bool_], end_ids: list[int]) -> None:
    """Set what may not come next to -inf; `end_ids` too, if anything else is left."""
    if end_ids:
        goes_on = is_allowed.copy()
        goes_on[end_ids] = False
        is_allowed = goes_on if goes_on.any() else is_allowed
    row.masked_fill_(torch.from_numpy(~is_allowed).to(row.device), float("-inf"))


def logits_processor(
    sampling: SamplingParams,
    prompt_length: int,
    eos_token_ids: frozenset[int],
    matcher: TokenMatcher | None = None,
) -> LogitsProcessor | None:
    """None where a request's settings leave the logits as they are."""
    if sampling.logit_bias or sampling.min_tokens or sampling.has_penalties or matcher is not None:
        return LogitsProcessor(sampling, prompt_length, eos_token_ids, matcher)
    return None
