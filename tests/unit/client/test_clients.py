"""Both clients: what they send, how they read answers, what they raise."""

from __future__ import annotations

import inspect
import json
from typing import Any

import httpx
import pytest

import reft_client
from reft_client import AsyncReftClient, ReftClient
from reft_client.admin import Admin, AsyncAdmin
from reft_client.async_interventions import AsyncInterventions
from reft_client.interventions import Interventions
from reft_client.routes import AsyncRoutes, Routes
from reft_client.types import InterventionRef
from tests.unit.client.fakes import CHAT, COMPLETION, MakeClient, answering, error_response


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


@pytest.mark.parametrize(
    ("sync", "other"),
    [(ReftClient, AsyncReftClient), (Interventions, AsyncInterventions), (Routes, AsyncRoutes), (Admin, AsyncAdmin)],
)
def test_clients_have_the_same_face(sync: type, other: type) -> None:
    def face(owner: type) -> dict[str, list[tuple[str, object]]]:
        return {
            name: [(p.name, p.default) for p in inspect.signature(member).parameters.values()]
            for name, member in inspect.getmembers(owner, inspect.isfunction)
            if not name.startswith("_")
        }

    assert face(sync) == face(other)
