"""Text to token ids and back, and single tokens."""

from __future__ import annotations

import asyncio

import pytest
from transformers import PreTrainedTokenizerFast

from reft_server.api.tokenization import MAX_INLINE_CHARACTERS, Tokenization
from reft_server.errors import InvalidRequestError
from tests.fakes.tokenizers import byte_fallback_tokenizer, byte_level_tokenizer


def test_tokenization_in_threads_equals_tokenization_inline(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenization = Tokenization(tokenizer)
    texts = ["Grüße 🙂 " * MAX_INLINE_CHARACTERS, "short", "東京 " * MAX_INLINE_CHARACTERS] * 4

    async def encode() -> list[tuple[int, ...]]:
        return list(await asyncio.gather(*(tokenization.encode(text, param="prompt") for text in texts)))

    encoded = asyncio.run(encode())
    assert encoded == [tuple(tokenizer(text)["input_ids"]) for text in texts]
    assert [tokenization.decode(ids) for ids in encoded] == texts


def test_tokenization_forgets_truncation_that_the_files_ask_for() -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    tokenization = Tokenization(tokenizer)
    ids = asyncio.run(tokenization.encode("The capital of France is Paris", param="prompt"))
    assert tokenization.decode(ids) == "The capital of France is Paris"
    assert 0 not in ids


@pytest.mark.parametrize("make", [byte_level_tokenizer, byte_fallback_tokenizer])
def test_token_bytes_cover_the_text_of_every_byte(make: type) -> None:
    tokenization = Tokenization(make())
    vocabulary = make().get_vocab()
    covered = {tokenization.token_bytes(index) for index in vocabulary.values()}
    assert {bytes([byte]) for byte in range(256)} <= covered


def test_token_text_writes_a_part_of_a_character_as_bytes() -> None:
    tokenization = Tokenization(byte_fallback_tokenizer())
    assert tokenization.token_text(1 + 0xE2) == "bytes:\\xe2"
    assert tokenization.token_text(1 + ord("a")) == "a"


def test_token_bytes_of_an_id_without_a_token_are_empty(tokenizer: PreTrainedTokenizerFast) -> None:
    assert Tokenization(tokenizer).token_bytes(len(tokenizer) + 5) == b""


def test_half_a_surrogate_pair_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate") as raised:
        asyncio.run(Tokenization(tokenizer).encode("a\ud800", param="prompt"))
    assert raised.value.param == "prompt"
