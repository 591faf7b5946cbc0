"""Texts of exact length, with a tokenizer that splits some words."""

from __future__ import annotations

import random

import pytest

from reft_client.bench.vocabulary import WORDS, Vocabulary, calibrate


class Tokenizer:
    """Splits words with an `ow` in two, and adds a start token and a template."""

    def __init__(self, num_extra: int) -> None:
        self.num_extra = num_extra
        self.num_calls = 0

    def count(self, text: str) -> int:
        self.num_calls += 1
        return self.num_extra + sum(2 if "ow" in word else 1 for word in text.split())


@pytest.mark.parametrize("num_extra", [0, 1, 12])
@pytest.mark.parametrize("num_tokens", [13, 128, 1000])
def test_text_has_exactly_the_tokens_asked_for(num_extra: int, num_tokens: int) -> None:
    tokenizer = Tokenizer(num_extra)
    vocabulary = calibrate(tokenizer.count)
    assert vocabulary.is_exact
    assert not any("ow" in word for word in vocabulary.words)
    text = vocabulary.text(num_tokens, random.Random(1))
    assert tokenizer.count(text) == num_tokens
    assert tokenizer.count(f"{text} {vocabulary.more(7, random.Random(2))}") == num_tokens + 7


def test_calibration_costs_few_calls_where_every_word_is_a_token() -> None:
    calls: list[str] = []
    calibrate(lambda text: (calls.append(text), len(text.split()))[1])
    assert len(calls) == 3


def test_calibration_without_a_tokenizer_is_a_guess() -> None:
    assert calibrate(lambda _: None) == Vocabulary()
    assert not Vocabulary().is_exact


def test_calibration_with_a_tokenizer_of_bytes_is_a_guess() -> None:
    assert not calibrate(lambda text: len(text.encode())).is_exact


def test_words_are_distinct() -> None:
    assert len(set(WORDS)) == len(WORDS) > 300
