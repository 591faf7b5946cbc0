"""Streams of answers, cut anywhere."""

from __future__ import annotations

import json

import pytest

from reft_client.bench.answers import AnswerReader


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


STREAM = b"".join(
    [
        b": a comment\n\n",
        event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}], intervention=[{"name": "haiku"}]),
        event(choices=[{"index": 0, "delta": {"content": "Caf\u00e9"}}]),
        event(choices=[{"index": 0, "delta": {"content": " au"}}]),
        event(choices=[{"index": 0, "delta": {"content": " lait"}, "finish_reason": "length"}]),
        event(choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4}),
        b"data: [DONE]\n\n",
    ]
)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 10_000])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_answer_is_the_same_for_every_way_of_cutting(size: int, line_end: bytes) -> None:
    stream = STREAM.replace(b"\n", line_end)
    reader = AnswerReader()
    for start in range(0, len(stream), size):
        reader.feed(stream[start : start + size], start / 1000)
    assert reader.text == "Café au lait"
    assert (reader.num_pieces, len(reader.gaps_s)) == (3, 2)
    assert reader.usage == {"prompt_tokens": 3, "completion_tokens": 4}
    assert (reader.finish_reason, reader.answered_by, reader.is_done) == ("length", "haiku", True)


def test_answer_times_pieces_and_not_the_role() -> None:
    reader = AnswerReader()
    reader.feed(event(choices=[{"delta": {"role": "assistant", "content": ""}}]), 1.0)
    assert reader.first_s is None
    for now_s, word in ((2.0, "a"), (2.5, "b"), (2.5, "c"), (4.5, "d")):
        reader.feed(event(choices=[{"delta": {"content": word}}]), now_s)
    assert reader.first_s == 2.0
    assert list(reader.gaps_s) == [0.5, 0.0, 2.0]


def test_answer_counts_thoughts_as_tokens() -> None:
    reader = AnswerReader()
    reader.feed(event(choices=[{"delta": {"reasoning_content": "hm"}}]), 1.0)
    assert (reader.first_s, reader.text) == (1.0, "hm")


def test_answer_notes_an_error_of_the_stream() -> None:
    reader = AnswerReader()
    reader.feed(event(error={"message": "gone", "code": "engine_unavailable"}), 1.0)
    assert reader.error == {"message": "gone", "code": "engine_unavailable"}
    assert not reader.is_done


@pytest.mark.parametrize("data", [b"data: {\n", b"data: 3\n", b'data: {"choices": [3]}\n'])
def test_answer_refuses_what_is_none(data: bytes) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        AnswerReader().feed(data, 0.0)
