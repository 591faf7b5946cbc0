"""When both clients send again, after how long, and when never."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

import reft_client
from reft_client import RetryPolicy
from tests.unit.client.fakes import COMPLETION, INFO, MakeClient, answering, error_response


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("stream", [False, True])
def test_early_refusal_is_retried_with_backoff(
    make_client: MakeClient, status: int, stream: bool, sleeps: Any, body: Any
) -> None:
    events = body([b"data: [DONE]\n\n"])
    answer = httpx.Response(200, stream=events, headers={"content-type": "text/event-stream"})
    handler, requests = answering(error_response(status), error_response(status), answer if stream else COMPLETION)
    make_client(handler).complete("x", stream=stream)
    assert len(requests) == 3
    assert sleeps.delays_s == [0.25, 0.5]
    assert requests[0].content == requests[2].content


@pytest.mark.parametrize(
    ("header", "expected"), [("2", 2.25), ("0.5", 0.75), ("0", 0.25), ("soon", 0.25), ("-3", 0.25), ("nan", 0.25)]
)
def test_retry_after_is_honoured(make_client: MakeClient, header: str, expected: float, sleeps: Any) -> None:
    handler, _ = answering(error_response(429, **{"retry-after": header}), COMPLETION)
    make_client(handler).complete("x")
    assert sleeps.delays_s == [expected]


@pytest.mark.parametrize(("header", "expected"), [("2", 2.0), ("-3", None), ("inf", None), ("Fri, 31 Dec", None)])
def test_retry_after_is_reported(make_client: MakeClient, header: str, expected: float | None) -> None:
    handler, _ = answering(error_response(500, **{"retry-after": header}))
    with pytest.raises(reft_client.InternalServerError) as caught:
        make_client(handler).models()
    assert caught.value.retry_after_s == expected


def test_retry_after_beyond_patience_raises_at_once(make_client: MakeClient, sleeps: Any) -> None:
    handler, _ = answering(error_response(429, **{"retry-after": "3600"}))
    with pytest.raises(reft_client.RateLimitError) as caught:
        make_client(handler).complete("x")
    assert caught.value.retry_after_s == 3600
    assert sleeps.delays_s == []


def test_retries_are_bounded_in_number(make_client: MakeClient, sleeps: Any) -> None:
    handler, requests = answering(error_response(503))
    with pytest.raises(reft_client.ServiceUnavailableError):
        make_client(handler).models()
    assert len(requests) == 5
    assert sleeps.delays_s == [0.25, 0.5, 1.0, 2.0]


def test_retries_are_bounded_in_time(make_client: MakeClient) -> None:
    times = iter([0.0, 30.0, 59.9])
    handler, requests = answering(error_response(503))
    with pytest.raises(reft_client.ServiceUnavailableError):
        make_client(handler, retry=RetryPolicy(jitter=lambda: 1.0, clock=lambda: next(times))).models()
    assert len(requests) == 2


@pytest.mark.parametrize(
    "failure", [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("full")]
)
def test_failed_connect_is_retried_even_for_generation(make_client: MakeClient, failure: Exception) -> None:
    handler, requests = answering(failure, failure, COMPLETION)
    assert make_client(handler).complete("x").id == "c1"
    assert len(requests) == 3


def test_server_that_is_down_raises_unreachable(make_client: MakeClient) -> None:
    handler, _ = answering(httpx.ConnectError("refused"))
    with pytest.raises(reft_client.ServerUnreachableError, match=r"http://127\.0\.0\.1:8000: refused"):
        make_client(handler).complete("x")


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (httpx.ReadError("reset"), reft_client.APIConnectionError),
        (httpx.RemoteProtocolError("gone"), reft_client.APIConnectionError),
        (httpx.ReadTimeout("slow"), reft_client.APITimeoutError),
        (httpx.WriteTimeout("slow"), reft_client.APITimeoutError),
    ],
)
def test_generation_is_not_repeated_once_sent(
    make_client: MakeClient, failure: Exception, expected: type[Exception]
) -> None:
    handler, requests = answering(failure, COMPLETION)
    with pytest.raises(expected):
        make_client(handler).complete("x")
    assert len(requests) == 1


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), httpx.RemoteProtocolError("gone")])
def test_reading_is_repeated_when_the_connection_breaks(make_client: MakeClient, failure: Exception) -> None:
    handler, requests = answering(failure, {"object": "list", "data": [INFO]})
    assert make_client(handler).interventions.list().data[0].name == "haiku"
    assert len(requests) == 2


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), 503])
@pytest.mark.parametrize("probe", ["health", "ready"])
def test_probes_are_never_retried(make_client: MakeClient, probe: str, failure: Any) -> None:
    handler, requests = answering(failure, {"status": "ok"})
    with pytest.raises(reft_client.ReftClientError):
        getattr(make_client(handler), probe)()
    assert len(requests) == 1
