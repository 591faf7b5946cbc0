"""Texts of exact length, with a tokenizer that splits some words."""

from __future__ import annotations

import json
import random

import httpx
import pytest

from reft_client.bench.vocabulary import WORDS, ServerTokenizer, Vocabulary, calibrate
from reft_client.connection import Connection


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


@pytest.mark.parametrize(
    ("field", "endpoint"), [("prompt", "completions"), ("content", "completions"), ("messages", "chat")]
)
def test_tokenizer_speaks_the_servers_dialect(field: str, endpoint: str) -> None:
    """llama.cpp's server finds no text in vLLM's request and counts nothing."""

    def tokenize(request: httpx.Request) -> httpx.Response:
        text = json.loads(request.content).get(field, "")
        words = text if isinstance(text, str) else text[0]["content"]
        return httpx.Response(200, json={"tokens": words.split()})

    connection = Connection.resolve("http://x", None, 1.0)
    with ServerTokenizer(connection, endpoint, None, httpx.MockTransport(tokenize)) as tokenizer:
        assert tokenizer.count("three small words") == 3


@pytest.mark.parametrize(
    "answer", [httpx.Response(404), httpx.Response(200, json={"detail": "no"}), httpx.Response(200)]
)
def test_tokenizer_of_a_server_without_one_counts_nothing(answer: httpx.Response) -> None:
    connection = Connection.resolve("http://x", None, 1.0)
    with ServerTokenizer(connection, "completions", None, httpx.MockTransport(lambda _: answer)) as tokenizer:
        assert tokenizer.count("three small words") is None
