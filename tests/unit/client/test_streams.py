"""Streams of both clients: chunks, errors midway, ends that are missing, and giving up early."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import reft_client

MakeClient = Callable[..., Any]
EVENTS = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "r1"}
DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def piece(text: str, **fields: Any) -> bytes:
    return event({"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "text": text}], **fields})


def delta(text: str) -> bytes:
    return event({"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]})


def serving(stream: Any, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _: httpx.Response(200, stream=stream, headers=headers or EVENTS)


def test_stream_yields_chunks_in_order(make_client: MakeClient, body: Any) -> None:
    usage = event(
        {
            "id": "c1",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        }
    )
    raw = piece("Zür") + b": ping\n\n" + piece("ich") + usage + DONE
    served = body([raw[i : i + 7] for i in range(0, len(raw), 7)])
    with make_client(serving(served)).complete("x", stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    assert [choice.text for chunk in chunks for choice in chunk.choices] == ["Zür", "ich"]
    assert chunks[-1].usage.total_tokens == 3
    assert served.is_closed


def test_stream_request_asks_for_events(make_client: MakeClient, body: Any) -> None:
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, stream=body([DONE]), headers=EVENTS)

    assert list(make_client(handle).chat("x", stream=True)) == []
    assert requests[0].headers["accept"] == "text/event-stream"
    assert json.loads(requests[0].content)["stream"] is True


def test_chat_stream_yields_deltas(make_client: MakeClient, body: Any) -> None:
    stream = make_client(serving(body([delta("a"), delta("b"), DONE]))).chat("x", stream=True)
    assert [chunk.choices[0].delta.content for chunk in stream] == ["a", "b"]


@pytest.mark.parametrize(
    ("error", "expected", "status"),
    [
        ({"type": "invalid_request_error", "code": "x"}, reft_client.BadRequestError, 400),
        ({"type": "rate_limit_error", "code": "x"}, reft_client.RateLimitError, 429),
        ({"type": "server_error", "code": "engine_unavailable"}, reft_client.ServiceUnavailableError, 503),
        ({"type": "never heard of", "code": None}, reft_client.InternalServerError, 500),
    ],
)
def test_stream_error_event_raises_its_type_after_the_chunks_before_it(
    make_client: MakeClient, body: Any, error: dict[str, Any], expected: type[Exception], status: int
) -> None:
    served = body([piece("a") + event({"error": {"message": "it failed", "param": None, **error}}) + DONE])
    received = []
    stream = make_client(serving(served)).complete("x", stream=True)
    with pytest.raises(reft_client.APIStatusError, match="it failed") as caught:
        received.extend(chunk.choices[0].text for chunk in stream)
    assert type(caught.value) is expected
    assert (caught.value.status_code, caught.value.request_id) == (status, "r1")
    assert served.is_closed


def test_stream_takes_the_word_error_in_a_text_as_text(make_client: MakeClient, body: Any) -> None:
    stream = make_client(serving(body([piece('"error"'), DONE]))).complete("x", stream=True)
    assert [chunk.choices[0].text for chunk in stream] == ['"error"']


@pytest.mark.parametrize("tail", [[], [b"data: [DO"], [b"data: [DONE]"], [httpx.RemoteProtocolError("cut")]])
def test_stream_without_its_end_raises(make_client: MakeClient, body: Any, tail: list[Any]) -> None:
    served = body([piece("a"), *tail])
    stream = make_client(serving(served)).complete("x", stream=True)
    assert next(stream).choices[0].text == "a"
    with pytest.raises(reft_client.StreamTruncatedError):
        next(stream)
    assert served.is_closed


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (httpx.ReadTimeout("slow"), reft_client.APITimeoutError),
        (httpx.ReadError("reset"), reft_client.APIConnectionError),
    ],
)
def test_stream_that_breaks_raises(
    make_client: MakeClient, body: Any, failure: Exception, expected: type[Exception]
) -> None:
    stream = make_client(serving(body([piece("a"), failure]))).complete("x", stream=True)
    with pytest.raises(expected) as caught:
        list(stream)
    assert type(caught.value) is expected


def test_stream_that_breaks_after_its_end_is_whole(make_client: MakeClient, body: Any) -> None:
    served = body([piece("a") + DONE + piece("late"), piece("later"), httpx.ReadError("reset")])
    chunks = list(make_client(serving(served)).complete("x", stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["a"]


@pytest.mark.parametrize("data", [b"data: not json\n\n", b'data: {"id": 1}\n\n', b'data: {"error": "string"}\n\n'])
def test_stream_with_something_else_in_it_raises(make_client: MakeClient, body: Any, data: bytes) -> None:
    served = body([data])
    with pytest.raises(reft_client.APIResponseValidationError, match="CompletionChunk"):
        list(make_client(serving(served)).complete("x", stream=True))
    assert served.is_closed


def test_stream_of_another_content_type_is_refused_and_closed(make_client: MakeClient, body: Any) -> None:
    served = body([b"<html>"])
    with pytest.raises(reft_client.APIResponseValidationError, match="text/html"):
        make_client(serving(served, **{"content-type": "text/html"})).complete("x", stream=True)
    assert served.is_closed


def test_stream_left_early_closes_the_connection(make_client: MakeClient, body: Any) -> None:
    served = body([piece(str(i)) for i in range(100)])
    with make_client(serving(served)).complete("x", stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].text == "2":
                break
    assert served.is_closed
    assert served.num_read == 3


def test_stream_closed_before_use_is_empty(make_client: MakeClient, body: Any) -> None:
    served = body([piece("a")])
    stream = make_client(serving(served)).complete("x", stream=True)
    stream.close()
    stream.close()
    assert served.is_closed
    assert list(stream) == []
