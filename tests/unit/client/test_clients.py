"""Both clients: what they send, how they read answers, when they retry, what they raise."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import reft_client
from reft_client import AsyncReftClient, ReftClient, RetryPolicy
from reft_client.async_client import AsyncInterventions
from reft_client.sync_client import Interventions
from reft_client.types import InterventionRef

MakeClient = Callable[..., Any]
COMPLETION = {"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}
CHAT = {
    "id": "c1",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
}
INFO = {
    "name": "haiku",
    "version": 3,
    "content_hash": "sha256:ff",
    "size_bytes": 10,
    "created": 1,
    "base_model": "m",
    "layers": [1, 2],
}


def error_response(status: int, code: str = "x", **headers: str) -> httpx.Response:
    error = {"message": "it failed", "type": "t", "param": "p", "code": code}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "r1", **headers})


def answering(*outcomes: httpx.Response | Exception | int | dict[str, Any]) -> tuple[Any, list[httpx.Request]]:
    """A handler that gives one outcome after the other (the last for ever; an int is a status), and its requests."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        outcome = outcomes[min(len(requests), len(outcomes)) - 1]
        if isinstance(outcome, int):
            return error_response(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(200, json=outcome) if isinstance(outcome, dict) else outcome

    return handle, requests


def test_complete_sends_only_what_was_given(make_client: MakeClient) -> None:
    handler, requests = answering(COMPLETION)
    answer = make_client(handler).complete("hello", max_tokens=5, temperature=0, stop=("a", "b"))
    assert answer.choices[0].text == "hi"
    assert (requests[0].method, requests[0].url.path) == ("POST", "/v1/completions")
    assert json.loads(requests[0].content) == {
        "prompt": "hello",
        "max_tokens": 5,
        "temperature": 0.0,
        "stop": ["a", "b"],
    }


@pytest.mark.parametrize(
    ("intervention", "sent"),
    [
        ("haiku@3", "haiku@3"),
        (InterventionRef(name="haiku", scale=0.5), {"name": "haiku", "scale": 0.5}),
        ([{"name": "a@2", "scale": -1}, "b"], [{"name": "a", "version": 2, "scale": -1.0}, "b"]),
    ],
)
def test_complete_sends_interventions(make_client: MakeClient, intervention: Any, sent: object) -> None:
    handler, requests = answering(COMPLETION)
    make_client(handler).complete([1, 2], intervention=intervention)
    assert json.loads(requests[0].content) == {"prompt": [1, 2], "intervention": sent}


def test_complete_reads_what_answered(make_client: MakeClient) -> None:
    applied = {"name": "haiku", "version": 3, "content_hash": "sha256:ff", "scale": 0.5}
    handler, _ = answering({**COMPLETION, "intervention": [applied]})
    assert make_client(handler).complete("x").intervention[0].version == 3


@pytest.mark.parametrize(
    "messages",
    ["hi", [{"role": "user", "content": "hi"}], [reft_client.types.ChatMessage(role="user", content="hi")]],
    ids=["str", "dict", "model"],
)
def test_chat_takes_messages_in_any_shape(make_client: MakeClient, messages: Any) -> None:
    handler, requests = answering(CHAT)
    answer = make_client(handler).chat(messages, max_completion_tokens=4)
    assert answer.choices[0].message.content == "hi"
    assert requests[0].url.path == "/v1/chat/completions"
    sent = json.loads(requests[0].content)
    assert sent == {"messages": [{"role": "user", "content": "hi"}], "max_completion_tokens": 4}


def test_extra_body_is_sent_as_it_is(make_client: MakeClient) -> None:
    handler, requests = answering(COMPLETION)
    make_client(handler).complete("x", extra_body={"new_field": {"a": 1}})
    assert json.loads(requests[0].content) == {"prompt": "x", "new_field": {"a": 1}}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 5}, "temperature"),
        ({"tempreature": 1}, "unknown argument 'tempreature'"),
        ({"intervention": "a@"}, "intervention"),
        ({"stop": [1]}, "stop"),
        ({"extra_body": {"a": object()}}, "extra_body is not JSON"),
    ],
)
def test_bad_argument_is_refused_before_sending(make_client: MakeClient, options: Any, message: str) -> None:
    handler, requests = answering(COMPLETION)
    with pytest.raises(reft_client.InvalidArgumentError, match=message):
        make_client(handler).complete("x", **options)
    assert requests == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, reft_client.BadRequestError),
        (401, reft_client.AuthenticationError),
        (403, reft_client.PermissionDeniedError),
        (404, reft_client.NotFoundError),
        (409, reft_client.ConflictError),
        (413, reft_client.PayloadTooLargeError),
        (418, reft_client.APIStatusError),
        (422, reft_client.UnprocessableEntityError),
        (500, reft_client.InternalServerError),
        (502, reft_client.InternalServerError),
        (307, reft_client.APIStatusError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusal_raises_its_type_at_once(
    make_client: MakeClient, status: int, expected: type[Exception], stream: bool, sleeps: Any
) -> None:
    handler, requests = answering(error_response(status, "some_code"))
    with pytest.raises(reft_client.APIStatusError) as caught:
        make_client(handler).complete("x", stream=stream)
    assert type(caught.value) is expected
    error = caught.value
    assert (error.status_code, error.code, error.param, error.request_id) == (status, "some_code", "p", "r1")
    assert error.message == "it failed"
    assert (len(requests), sleeps.delays_s) == (1, [])


@pytest.mark.parametrize("page", [b"<html>", b"", b'{"error": "string"}', b'{"detail": []}', b"\xff"])
def test_refusal_by_something_else_says_where(make_client: MakeClient, page: bytes) -> None:
    handler, _ = answering(httpx.Response(502, content=page))
    with pytest.raises(reft_client.InternalServerError, match=r"/v1/models answered 502 \(Bad Gateway\)"):
        make_client(handler).models()


@pytest.mark.parametrize("page", [b"<html>", b"", b"{}", b"[]"])
def test_answer_of_something_else_raises(make_client: MakeClient, page: bytes) -> None:
    handler, _ = answering(httpx.Response(200, content=page))
    with pytest.raises(reft_client.APIResponseValidationError, match="CompletionResponse"):
        make_client(handler).complete("x")


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


@pytest.mark.parametrize(
    ("call", "path", "answer"),
    [
        (lambda client: client.interventions.get("haiku"), "/v1/interventions/haiku", INFO),
        (lambda client: client.interventions.get("haiku@2"), "/v1/interventions/haiku?version=2", INFO),
        (lambda client: client.interventions.get("haiku", 2), "/v1/interventions/haiku?version=2", INFO),
        (
            lambda client: client.interventions.get("haiku@sha256:f0"),
            "/v1/interventions/haiku?version=sha256%3Af0",
            INFO,
        ),
        (lambda client: client.interventions.get("../a b"), "/v1/interventions/..%2Fa%20b", INFO),
        (
            lambda client: client.interventions.versions("haiku"),
            "/v1/interventions/haiku/versions",
            {"name": "haiku", "data": [INFO]},
        ),
        (lambda client: client.models(), "/v1/models", {"data": [{"id": "m", "created": 1}]}),
        (lambda client: client.health(), "/health", {"status": "ok"}),
        (lambda client: client.ready(), "/ready", {"status": "ready"}),
        (lambda client: client.version(), "/version", {"version": "1"}),
    ],
)
def test_reading_asks_the_right_path(make_client: MakeClient, call: Any, path: str, answer: dict[str, Any]) -> None:
    handler, requests = answering(answer)
    call(make_client(handler))
    assert (requests[0].method, requests[0].url.raw_path.decode()) == ("GET", path)


@pytest.mark.parametrize(("version", "query"), [(None, ""), (2, "?version=2")])
def test_delete_asks_for_one_version_or_all(make_client: MakeClient, version: int | None, query: str) -> None:
    handler, requests = answering({"name": "haiku", "version": version, "deleted": True})
    assert make_client(handler).interventions.delete("haiku", version).deleted
    assert (requests[0].method, requests[0].url.raw_path.decode()) == ("DELETE", f"/v1/interventions/haiku{query}")


def test_delete_is_not_repeated_when_the_connection_breaks(make_client: MakeClient) -> None:
    handler, requests = answering(httpx.ReadError("reset"))
    with pytest.raises(reft_client.APIConnectionError):
        make_client(handler).interventions.delete("haiku")
    assert len(requests) == 1


def test_upload_streams_the_file_and_reports_progress(make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "haiku.safetensors"
    content = bytes(range(256)) * 3000
    path.write_bytes(content)
    steps: list[tuple[int, int]] = []
    handler, requests = answering(httpx.Response(201, json={**INFO, "self_test": {"sites": []}}))
    answer = make_client(handler).interventions.upload(path, on_progress=lambda *step: steps.append(step))
    assert answer.version == 3
    assert answer.self_test is not None
    request = requests[0]
    assert (request.method, str(request.url.copy_with(host="h", port=None))) == (
        "POST",
        "http://h/v1/interventions?name=haiku",
    )
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["content-length"] == str(len(content))
    assert "transfer-encoding" not in request.headers
    assert request.content == content
    assert steps[-1] == (len(content), len(content))
    assert len(steps) > 1


def test_upload_refused_early_is_sent_again_whole(make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 1000)
    handler, requests = answering(error_response(503), httpx.Response(201, json=INFO))
    make_client(handler).interventions.upload(path, "haiku")
    assert [len(request.content) for request in requests] == [1000, 1000]
    assert requests[0].url.params["name"] == "haiku"


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), 500])
def test_upload_is_not_repeated_otherwise(make_client: MakeClient, tmp_path: Path, failure: Any) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    handler, requests = answering(failure)
    with pytest.raises(reft_client.ReftClientError):
        make_client(handler).interventions.upload(path)
    assert len(requests) == 1


@pytest.mark.parametrize("name", ["missing", "."])
def test_upload_of_no_file_is_refused_before_sending(make_client: MakeClient, tmp_path: Path, name: str) -> None:
    handler, requests = answering(INFO)
    with pytest.raises(reft_client.InvalidArgumentError, match="can't read"):
        make_client(handler).interventions.upload(tmp_path / name)
    assert requests == []


def test_download_saves_the_file_whole(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    handler, requests = answering(httpx.Response(200, stream=body([b"ab", b"cd"]), headers={"content-length": "4"}))
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    steps: list[tuple[int, int]] = []
    assert (
        make_client(handler).interventions.download("haiku@2", target, on_progress=lambda *step: steps.append(step))
        == target
    )
    assert requests[0].url.raw_path == b"/v1/interventions/haiku/download?version=2"
    assert target.read_bytes() == b"abcd"
    assert steps == [(2, 4), (4, 4)]
    assert list(tmp_path.iterdir()) == [target]


def test_download_that_breaks_leaves_the_old_file(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    handler, _ = answering(httpx.Response(200, stream=body([b"ab", httpx.ReadError("reset")])))
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(reft_client.APIConnectionError):
        make_client(handler).interventions.download("haiku", target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_download_that_is_given_up_closes_the_connection(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    def give_up(*_: int) -> None:
        raise KeyboardInterrupt

    served = body([b"ab", b"cd"])
    handler, _ = answering(httpx.Response(200, stream=served))
    with pytest.raises(KeyboardInterrupt):
        make_client(handler).interventions.download("haiku", tmp_path / "out", on_progress=give_up)
    assert served.is_closed
    assert list(tmp_path.iterdir()) == []


def test_download_into_missing_folder_is_refused(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    handler, _ = answering(httpx.Response(200, stream=body([b"ab"])))
    with pytest.raises(reft_client.InvalidArgumentError, match="can't write"):
        make_client(handler).interventions.download("haiku", tmp_path / "no" / "out")


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (None, None, "http://127.0.0.1:8000"),
        (None, "http://h:1", "http://h:1"),
        ("http://g:2/", "http://h:1", "http://g:2"),
        ("http://g:2/v1", None, "http://g:2"),
        ("https://g/prefix/v1/", None, "https://g/prefix"),
    ],
)
def test_base_url_comes_from_argument_then_environment(
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    environment: str | None,
    expected: str,
) -> None:
    if environment:
        monkeypatch.setenv("REFT_URL", environment)
    handler, requests = answering({"status": "ok"})
    client = make_client(handler, base_url=given)
    client.health()
    assert client.base_url == expected
    assert str(requests[0].url) == f"{expected}/health"


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_url": "localhost:8000"},
        {"base_url": "ftp://h"},
        {"base_url": "http://"},
        {"base_url": "http://h:port"},
        {"api_key": "a\nb"},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
    ],
)
def test_client_refuses_arguments_that_cannot_work(make_client: MakeClient, arguments: dict[str, Any]) -> None:
    with pytest.raises(reft_client.InvalidArgumentError):
        make_client(answering({})[0], **arguments)


@pytest.mark.parametrize(("given", "environment", "expected"), [("k", "e", "k"), (None, "e", "e"), (None, None, None)])
def test_api_key_is_sent_as_bearer(
    make_client: MakeClient,
    monkeypatch: pytest.MonkeyPatch,
    given: str | None,
    environment: str | None,
    expected: str | None,
) -> None:
    if environment:
        monkeypatch.setenv("REFT_API_KEY", environment)
    handler, requests = answering({"status": "ok"})
    make_client(handler, api_key=given).health()
    assert requests[0].headers.get("authorization") == (f"Bearer {expected}" if expected else None)


def test_timeouts_are_always_set(make_client: MakeClient) -> None:
    handler, requests = answering(COMPLETION)
    client = make_client(handler, timeout_s=30)
    client.complete("x")
    client.complete("x", timeout_s=2)
    timeouts = [request.extensions["timeout"] for request in requests]
    assert [timeout["read"] for timeout in timeouts] == [30, 2]
    assert all(timeout[key] > 0 for timeout in timeouts for key in ("connect", "read", "write", "pool"))


@pytest.mark.parametrize(("sync", "other"), [(ReftClient, AsyncReftClient), (Interventions, AsyncInterventions)])
def test_clients_have_the_same_face(sync: type, other: type) -> None:
    def face(owner: type) -> dict[str, list[tuple[str, object]]]:
        return {
            name: [(p.name, p.default) for p in inspect.signature(member).parameters.values()]
            for name, member in inspect.getmembers(owner, inspect.isfunction)
            if not name.startswith("_")
        }

    assert face(sync) == face(other)
