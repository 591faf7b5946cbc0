"""Which rows share a batch, and what the model is given for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from .data import TokenizedExample

_POOL_BATCHES = 16
IGNORED = -100


@dataclass(frozen=True)
class Batch:
    """Padded rows of prompt and answer.

    Args:
        input_ids: `[num_rows, num_tokens]` int64.
        attention_mask: `[num_rows, num_tokens]` int64, 0 = padding.
        position_ids: `[num_rows, num_tokens]` int64, RoPE ids; padding has 0.
        labels: `[num_rows, num_tokens]` int64: at each place the answer token that must come next, else `IGNORED`.
        examples: the rows themselves, whole, also where their first tokens are in `past`.
        past: keys and values of tokens before `input_ids`, then `attention_mask` covers both; or None.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    labels: Tensor
    examples: tuple[TokenizedExample, ...]
    past: DynamicCache | None = None

    @property
    def prompt_lengths(self) -> tuple[int, ...]:
        """Tokens of each row's prompt, padding not counted."""
        return tuple(len(example.prompt_ids) for example in self.examples)

    @property
    def num_answer_tokens(self) -> int:
        return int((self.labels != IGNORED).sum())

    @property
    def num_tokens(self) -> int:
        """Tokens without padding, those in `past` included."""
        return int(self.attention_mask.sum())

    @property
    def first_label_column(self) -> int:
        """No column before this one has a label."""
        return int((self.labels != IGNORED).any(dim=0).int().argmax())


def collate(
    examples: Sequence[TokenizedExample], pad_token_id: int, padding_side: Literal["left", "right"] = "left"
) -> Batch:
    """Pad rows to one length.

    On the left the answers end together, so that the output head runs on few columns without an answer.
    """
    # The last answer token is predicted, and never read.
    rows = [(*example.prompt_ids, *example.answer_ids[:-1]) for example in examples]
    width = max(len(row) for row in rows)
    shape = (len(rows), width)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, IGNORED, dtype=torch.int64)
    for index, (row, example) in enumerate(zip(rows, examples, strict=True)):
        start = width - len(row) if padding_side == "left" else 0
        end, num_answer = start + len(row), len(example.answer_ids)
        input_ids[index, start:end] = torch.tensor(row)
        attention_mask[index, start:end] = 1
        labels[index, end - num_answer : end] = torch.tensor(example.answer_ids)
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    return Batch(input_ids, attention_mask, position_ids, labels, tuple(examples))


def epoch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row indices of every batch of one epoch: random, with rows of similar length together.

    A pure function of its arguments, so that a resumed run sees the rows that an uninterrupted one sees.
    """
    # A seed of its own for each epoch; the multiplier keeps neighbouring seeds' epochs apart.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    shuffled: list[int] = torch.randperm(len(lengths), generator=generator).tolist()
    pool_size = batch_size * _POOL_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), pool_size):
        pool = sorted(shuffled[start : start + pool_size], key=lambda index: lengths[index])
        batches.extend(pool[first : first + batch_size] for first in range(0, len(pool), batch_size))
    order: list[int] = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[index] for index in order]


def length_order(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row indices of batches for evaluation: by length, so that little is padding."""
    by_length = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [by_length[start : start + batch_size] for start in range(0, len(by_length), batch_size)]
