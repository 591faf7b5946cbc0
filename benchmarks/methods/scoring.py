"""Accuracy on held-out rows, the same for every method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_interventions.hooks import SiteEdit
from reft_interventions.training.batches import IGNORED, collate, length_order
from reft_interventions.training.data import TokenizedExample
from reft_interventions.training.loss import answer_logits

BATCH_SIZE = 32


@dataclass(frozen=True)
class Score:
    """Accuracy, and the mean loss per answer token."""

    accuracy: float
    loss: float


@torch.no_grad()
def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[TokenizedExample],
    labels: Sequence[str] | None,
    edits: Sequence[SiteEdit] = (),
) -> Score:
    """By likelihood of the labels, or, without labels, by whether greedy decoding would write the whole answer."""
    first_tokens = torch.tensor(_first_tokens(tokenizer, labels or ()), device=model.device)
    num_right, loss, num_tokens = 0, 0.0, 0
    for indices in length_order([example.num_tokens for example in examples], BATCH_SIZE):
        batch = collate([examples[index] for index in indices], int(tokenizer.pad_token_id or 0))
        logits, wanted = answer_logits(model, batch, edits)  # [num_rows, num_columns, vocab_size], [.., num_columns]
        is_answer = wanted != IGNORED
        loss += float(functional.cross_entropy(logits[is_answer], wanted[is_answer], reduction="sum"))
        num_tokens += int(is_answer.sum())
        if labels is None:
            is_right = ((logits.argmax(dim=-1) == wanted) | ~is_answer).all(dim=1)
        else:
            rows, columns = torch.arange(len(indices), device=logits.device), is_answer.int().argmax(dim=1)
            likeliest = logits[rows, columns][:, first_tokens].argmax(dim=1)
            is_right = first_tokens[likeliest] == wanted[rows, columns]
        num_right += int(is_right.sum())
    return Score(num_right / len(examples), loss / num_tokens)


def _first_tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str]) -> list[int]:
    tokens = [int(tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0]) for label in labels]
    if len(set(tokens)) != len(tokens):
        raise ValueError("two labels begin with the same token: they can't be told apart by it")
    return tokens
