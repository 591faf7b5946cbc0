"""Penalties, biases and bans against transformers' own processors where the two agree, else against definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from reft_server.engine.logits_processor import logits_processor
from reft_server.engine.types import SamplingParams

VOCAB_SIZE = 40
EOS = frozenset({5, 6})
PROMPT = [1, 2, 2, 30, 7]
ANSWER = [2, 9, 9, 9, 30]


def rows(num_rows: int) -> torch.Tensor:
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(1)) * 3


def run(num_steps: int, **sampling: Any) -> list[torch.Tensor]:
    """What the rows of the first `num_steps` steps of one answer become."""
    processor = logits_processor(SamplingParams(max_tokens=9, **sampling), len(PROMPT), EOS)
    assert processor is not None
    out = []
    for step, row in enumerate(rows(num_steps)):
        processor(row, [*PROMPT, *ANSWER[:step]])
        out.append(row)
    return out


def expected(processor: Any, num_steps: int) -> list[torch.Tensor]:
    logits = rows(num_steps)
    inputs = [torch.tensor([[*PROMPT, *ANSWER[:step]]]) for step in range(num_steps)]
    return [processor(ids, row[None].clone())[0] for ids, row in zip(inputs, logits, strict=True)]


@pytest.mark.parametrize("penalty", [0.5, 1.3, 10.0])
def test_repetition_penalty_is_transformers_over_prompt_and_answer(penalty: float) -> None:
    theirs = expected(RepetitionPenaltyLogitsProcessor(penalty), 6)
    for ours, row in zip(run(6, repetition_penalty=penalty), theirs, strict=True):
        torch.testing.assert_close(ours, row)


def test_logit_bias_is_transformers_sequence_bias() -> None:
    biases = {3: 2.5, 7: -100.0, 39: 0.5}
    theirs = expected(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in biases.items()]), 2)
    for ours, row in zip(run(2, logit_bias=tuple(biases.items())), theirs, strict=True):
        torch.testing.assert_close(ours, row)


def test_min_tokens_is_transformers_min_new_tokens_with_stop_tokens() -> None:
    theirs = expected(MinNewTokensLengthLogitsProcessor(len(PROMPT), 3, [5, 6, 11]), 5)
    for ours, row in zip(run(5, min_tokens=3, stop_token_ids=frozenset({11})), theirs, strict=True):
        torch.testing.assert_close(ours, row)


def test_min_tokens_leaves_an_eos_that_would_not_end_the_answer() -> None:
    (row,) = run(1, min_tokens=3, ignore_eos=True, stop_token_ids=frozenset({11}))
    assert (row == -torch.inf).nonzero().flatten().tolist() == [11]


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.7), (-1.0, 2.0)])
def test_presence_and_frequency_count_the_answer_only(presence: float, frequency: float) -> None:
    for step, ours in enumerate(run(6, presence_penalty=presence, frequency_penalty=frequency)):
        row = rows(6)[step]
        for token in range(VOCAB_SIZE):
            count = ANSWER[:step].count(token)
            row[token] -= frequency * count + presence * (count > 0)
        torch.testing.assert_close(ours, row)


def test_answer_is_counted_from_its_tokens_whatever_steps_were_missed() -> None:
    settings = {"presence_penalty": 0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.2}
    late = logits_processor(SamplingParams(max_tokens=9, **settings), len(PROMPT), EOS)
    assert late is not None
    row = rows(6)[5].clone()
    late(row, [*PROMPT, *ANSWER])
    torch.testing.assert_close(row, run(6, **settings)[5], rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0, "stop_token_ids": frozenset({3})}, {"min_p": 0.2}])
def test_settings_that_leave_the_logits_need_no_processor(settings: dict[str, Any]) -> None:
    assert logits_processor(SamplingParams(max_tokens=9, **settings), len(PROMPT), EOS) is None
