"""Logprobs of chosen tokens and of the likeliest ones."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

Logprobs = tuple[float, tuple[tuple[int, float], ...]]
"""A token's logprob, and (id, logprob) of the likeliest ones, the likeliest first."""


def pick_logprobs(logprobs: Tensor, token_ids: SequenceOf[int], counts: SequenceOf[int]) -> list[Logprobs]:
    """Of each row of `[num_rows, vocab_size]`: its token's logprob, and the `counts[row]` likeliest tokens."""
    values, ids = (one.tolist() for one in logprobs.topk(max(counts), dim=-1))  # at once: a GPU waits each time
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logprobs.device)[:, None])[:, 0].tolist()
    found: list[Logprobs] = []
    for row, (logprob, count) in enumerate(zip(chosen, counts, strict=True)):
        top = zip(ids[row][:count], values[row][:count], strict=True)
        found.append((-1e9 if logprob == -math.inf else logprob, tuple(top)))
    return found
