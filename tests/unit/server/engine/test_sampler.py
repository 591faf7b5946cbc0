"""Sampling against plain definitions of the distributions, and rows that don't influence each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reft_server.engine import sampler
from reft_server.engine.sampler import sample
from reft_server.engine.sequence import Sequence
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams

NUM_DRAWS = 4000


def sequence(**sampling: Any) -> Sequence:
    params = SamplingParams(**{"max_tokens": 1, **sampling})
    return Sequence(GenerationRequest("test", (1,), params), NullStream(), 1)


def expected_distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """Straight from the definition, in float64, token by token."""
    probabilities = (logits.double() / temperature).softmax(-1)
    order = probabilities.argsort(descending=True).tolist()
    order = [i for i in order if probabilities[i] >= min_p * probabilities[order[0]]]
    if top_k:
        order = order[:top_k]
    kept = torch.zeros_like(probabilities)
    total = sum(probabilities[i].item() for i in order)
    mass = 0.0
    for token in order:
        if mass >= top_p * total and mass > 0:
            break
        kept[token] = probabilities[token]
        mass += probabilities[token].item()
    return kept / kept.sum()


@pytest.mark.parametrize("vocab_size", [20, 1000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.0, 0, 0.8, 0.0), (1.5, 10, 0.6, 0.0), (1.0, 0, 0.999, 0.0),
        (1.0, 0, 1.0, 0.1), (1.0, 0, 1.0, 0.5), (0.8, 0, 0.7, 0.3), (1.5, 10, 0.6, 0.05), (1.0, 0, 1.0, 1.0),
    ],
)  # fmt: skip
def test_draws_follow_the_distribution(
    vocab_size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(1)) * (3 if vocab_size == 20 else 0.3)
    expected = expected_distribution(logits, temperature, top_k, top_p, min_p)
    row = sequence(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=5)
    counts = torch.zeros(vocab_size)
    for _ in range(NUM_DRAWS // 200):
        for token in sample(logits.expand(200, -1), (row,) * 200):
            counts[token.token_id] += 1
    assert counts[expected == 0].sum() == 0
    distance = 0.5 * (counts / NUM_DRAWS - expected).abs().sum().item()
    assert distance < (0.05 if vocab_size == 20 else 0.22)  # 4,000 draws over 1,000 tokens are about 0.18 apart


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0]])
    assert sample(logits, (sequence(temperature=0.0),))[0].token_id == 1


@pytest.mark.parametrize("temperature", [1e-9, 1e-5])
def test_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(2))
    rows = tuple(sequence(temperature=temperature, seed=i) for i in range(3))
    assert [token.token_id for token in sample(logits, rows)] == logits.argmax(-1).tolist()


def test_row_draws_the_same_in_any_company() -> None:
    settings: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"temperature": 0.5, "top_p": 0.99, "num_logprobs": 2}, {"temperature": 1.0, "top_k": 300},
        {"temperature": 0.0, "logit_bias": ((7, 9.0),)}, {"temperature": 1.0, "min_p": 0.2, "repetition_penalty": 5.0},
        {"temperature": 1.0, "frequency_penalty": 2.0, "num_logprobs": 0},
    ]  # fmt: skip
    logits = torch.randn(len(settings), 300, generator=torch.Generator().manual_seed(3))
    together = sample(logits.clone(), tuple(sequence(seed=i, **one) for i, one in enumerate(settings)))
    for i, one in enumerate(settings):
        alone = sample(logits[i : i + 1].clone(), (sequence(seed=i, **one),))[0]
        assert alone == together[i]


def test_a_choice_that_fails_uses_up_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its step is run again, and a seed must give what it gives without the failure."""
    logits = torch.randn(2, 300, generator=torch.Generator().manual_seed(3))
    rows, fresh = ([sequence(temperature=2.0, top_p=p, seed=9, num_logprobs=1) for p in (0.9, 1.0)] for _ in range(2))
    for place in ("_invert", "pick_logprobs"):
        with monkeypatch.context() as patch:
            patch.setattr(sampler, place, lambda *_: torch.zeros(1 << 60))
            with pytest.raises(RuntimeError):
                sample(logits[[0, 1, 0]], (*rows, rows[0]))
    for _ in range(3):
        assert sample(logits, tuple(rows)) == sample(logits, tuple(fresh))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_row_that_is_not_finite_is_reported_and_spares_the_others(bad: float) -> None:
    logits = torch.randn(3, 10, generator=torch.Generator().manual_seed(4))
    expected = [token.token_id for token in sample(logits, (sequence(temperature=0.0),) * 3)]
    logits[1, 4] = bad
    tokens = sample(logits, tuple(sequence(temperature=t, num_logprobs=1) for t in (0.0, 1.0, 0.0)))
    assert [token.is_finite for token in tokens] == [True, False, True]
    assert [tokens[0].token_id, tokens[2].token_id] == [expected[0], expected[2]]


def test_logprobs_come_from_the_unmodified_distribution() -> None:
    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(5))
    first_row = sequence(temperature=0.3, top_k=2, num_logprobs=4, seed=1, logit_bias=((3, 50.0),))
    expected = logits[0].log_softmax(-1)
    first, second = sample(logits, (first_row, sequence(temperature=0.0)))
    assert first.token_id == 3
    assert first.logprob == pytest.approx(expected[first.token_id].item(), abs=1e-5)
    assert [token for token, _ in first.top_logprobs] == expected.topk(4).indices.tolist()
    assert second.logprob is None
