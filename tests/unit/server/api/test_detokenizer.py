"""Incremental text equals the whole text, cut at the first stop string, however the pieces fall."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_server.api.detokenizer import StopStringFilter
from reft_server.api.tokenization import Tokenization
from tests.fakes.tokenizers import byte_fallback_tokenizer, byte_level_tokenizer


@cache
def tokenization(kind: str) -> Tokenization:
    return Tokenization(byte_level_tokenizer() if kind == "byte-level" else byte_fallback_tokenizer())


@cache
def vocab_size(kind: str) -> int:
    return len(byte_level_tokenizer() if kind == "byte-level" else byte_fallback_tokenizer())


def deltas(kind: str, token_ids: list[int]) -> list[str]:
    detokenizer = tokenization(kind).detokenizer()
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


def cut_at_first_stop(text: str, stops: list[str]) -> str:
    """Written apart from the code under test: grow the text by one character until it ends with a stop string."""
    for end in range(len(text) + 1):
        matching = [stop for stop in stops if text[:end].endswith(stop)]
        if matching:
            return text[: end - max(map(len, matching))]
    return text


KINDS = ("byte-level", "byte-fallback")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_detokenizer_joined_deltas_equal_the_whole_decode(kind: str, data: st.DataObject) -> None:
    token_ids = data.draw(st.lists(st.integers(0, vocab_size(kind) - 1), max_size=40))
    assert "".join(deltas(kind, token_ids)) == tokenization(kind).decode(token_ids)


@given(text=st.text(alphabet="aé東🙂 b.", max_size=30))
@settings(max_examples=200, deadline=None)
def test_detokenizer_emits_no_replacement_character_for_valid_text(text: str) -> None:
    token_ids = byte_level_ids(text)
    pieces = deltas("byte-level", token_ids)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def byte_level_ids(text: str) -> list[int]:
    return list(tokenization("byte-level")._encode(text, False))


def test_detokenizer_holds_back_a_character_split_over_tokens() -> None:
    # every byte of the rocket its own token
    vocabulary = byte_level_tokenizer().get_vocab()
    by_byte = {tokenization("byte-level").token_bytes(index): index for index in vocabulary.values()}
    pieces = deltas("byte-level", [by_byte[bytes([byte])] for byte in "🚲".encode()])
    assert pieces == ["", "", "", "🚲", ""]


def test_detokenizer_flushes_an_incomplete_character_at_the_end() -> None:
    vocabulary = byte_level_tokenizer().get_vocab()
    by_byte = {tokenization("byte-level").token_bytes(index): index for index in vocabulary.values()}
    assert deltas("byte-level", [by_byte[b"\xf0"], by_byte[b"\x9f"]]) == ["", "", "\ufffd"]


def test_detokenizer_sees_a_byte_run_through_a_special_token() -> None:
    # ids of <0x00>, <eos>, <0x80>: with the special token left out, two bytes that are no text together
    assert deltas("byte-fallback", [1, 0, 129]) == ["", "", "", "\ufffd\ufffd"]


def test_detokenizer_leaves_special_tokens_out() -> None:
    ids = byte_level_ids("ab")
    assert "".join(deltas("byte-level", [ids[0], 0, *ids[1:], 0])) == "ab"


@given(
    pieces=st.lists(st.text(alphabet="ab ", max_size=4), max_size=12),
    stops=st.lists(st.text(alphabet="ab ", min_size=1, max_size=4), max_size=4),
)
@settings(max_examples=500, deadline=None)
def test_stop_filter_cuts_at_the_first_stop_whatever_the_pieces(pieces: list[str], stops: list[str]) -> None:
    stop_filter = StopStringFilter(stops)
    passed = "".join([*(stop_filter.push(piece) for piece in pieces), stop_filter.flush()])
    text = "".join(pieces)
    assert passed == cut_at_first_stop(text, stops)
    assert stop_filter.is_stopped == any(stop in text for stop in stops)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_stop_filter_after_detokenizer_equals_the_truncated_decode(data: st.DataObject) -> None:
    token_ids = data.draw(st.lists(st.integers(0, vocab_size("byte-level") - 1), max_size=30))
    whole = tokenization("byte-level").decode(token_ids)
    stops = [
        whole[start : start + size]
        for start, size in data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5)), max_size=3))
        if whole[start : start + size]
    ]
    stop_filter = StopStringFilter(stops)
    text = "".join(stop_filter.push(piece) for piece in deltas("byte-level", token_ids)) + stop_filter.flush()
    assert text == cut_at_first_stop(whole, stops)


def test_stop_filter_holds_back_only_what_may_be_a_stop() -> None:
    stop_filter = StopStringFilter(["END"])
    assert [stop_filter.push(piece) for piece in ("abE", "N", "x", "EN", "D!")] == ["ab", "", "ENx", "", ""]
    assert stop_filter.is_stopped
