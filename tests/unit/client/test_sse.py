"""The event-stream parser."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_client import sse
from reft_client.errors import APIResponseValidationError
from reft_client.sse import EventParser, ServerSentEvent


def parse(*pieces: bytes) -> list[ServerSentEvent]:
    parser = EventParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", ["a"]),
        (b"data:a\n\n", ["a"]),
        (b"data:  a\n\n", [" a"]),
        (b"data: a\r\n\r\n", ["a"]),
        (b"data: a\r\r", ["a"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data\n\n", [""]),
        (b"data: a\n\ndata: b\n\n", ["a", "b"]),
        (b": ping\n\n: ping\ndata: a\n\n", ["a"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"unknown: x\ndata: a\nretry: 5\n\n", ["a"]),
        (b"data: a: b\n\n", ["a: b"]),
        (b"event: x\n\n", []),
        (b"data: unfinished\n", []),
        (b"\n\n\n", []),
        (b"", []),
        ("data: \u20ac\u2028x\n\n".encode(), ["\u20ac\u2028x"]),
        (b"data: \xff\n\n", ["\ufffd"]),
    ],
)
def test_parser_reads_event_data(stream: bytes, expected: list[str]) -> None:
    assert [event.data for event in parse(stream)] == expected


def test_parser_reads_event_name_and_id() -> None:
    events = parse(b"event: error\nid: 7\ndata: a\n\nid: x\0y\ndata: b\n\n")
    assert events == [ServerSentEvent("a", "error", "7"), ServerSentEvent("b", "message", "7")]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_parser_joins_utf8_cut_between_pieces(size: int) -> None:
    stream = "data: Zürich \U0001f600\r\ndata: b\r\n\r\n".encode()
    pieces = [stream[i : i + size] for i in range(0, len(stream), size)]
    assert [event.data for event in parse(*pieces)] == ["Zürich \U0001f600\nb"]


def test_parser_refuses_endless_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 10)
    assert [event.data for event in parse(b"data: 1\n\n", b"data: 2\n\n")] == ["1", "2"]
    with pytest.raises(APIResponseValidationError):
        parse(b"data: 1234", b"5678")


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12)
line_ends = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """A well-formed stream and the data of its events."""
    end = draw(line_ends)
    out, expected = "", []
    for lines in draw(st.lists(st.lists(texts, min_size=1, max_size=3), max_size=5)):
        if draw(st.booleans()):
            out += f": {draw(texts)}{end}"
        out += "".join(f"data: {line}{end}" for line in lines) + end
        expected.append("\n".join(lines))
    return out.encode(), expected


@given(streams(), st.data())
def test_parser_gives_same_events_for_any_chunking(stream: tuple[bytes, list[str]], data: st.DataObject) -> None:
    raw, expected = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=20)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert [event.data for event in parse(*pieces)] == expected


@given(st.lists(st.binary(max_size=8) | st.sampled_from([b"data:", b"\r", b"\n", b"\r\n", b": ", b"id:"]), max_size=20))
def test_parser_chunking_never_matters_even_for_garbage(pieces: list[bytes]) -> None:
    assert parse(*pieces) == parse(b"".join(pieces))
