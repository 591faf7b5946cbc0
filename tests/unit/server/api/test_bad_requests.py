"""Every bad request is refused by name, and nothing of it reaches the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from reft_client.types import ChatCompletionRequest, CompletionRequest
from tests.fakes.engine import FakeEngine

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def refuse(client: TestClient, url: str, status: int, **kwargs: Any) -> dict[str, Any]:
    if "json" in kwargs:  # ASCII: httpx can't encode half a surrogate pair
        kwargs = {"content": json.dumps(kwargs["json"]), "headers": {"content-type": "application/json"}}
    response = client.post(url, **kwargs)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": [10_000]}, "prompt"),
        ({"prompt": [10**30]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": "half \ud800"}, "prompt"),
        ({"prompt": [5] * 256}, "prompt"),
        ({"max_tokens": 257}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "16"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 10**400}, "max_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 100_000}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"echo": "yes"}, "echo"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"presence_penalty": 2.5}, "presence_penalty"),
        ({"frequency_penalty": "1"}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": {"five": 1}}, "logit_bias.five.[key]"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.name"),
        ({"structured_outputs": {"json": {"type": "x"}}}, "structured_outputs"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"json": {}, "structural_tag": "x"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_regex": "a", "guided_json": {}}, None),
        ({"stream_options": {"include_usage": True}}, None),
        ({"model": 5}, "model"),
        ({"intervention": 5}, "intervention"),
        ({"intervention": [{"scale": 2}]}, "intervention"),
        ({"intervention": {"name": "a", "scale": "big"}}, "intervention"),
        ({"intervention": ["a"] * 17}, "intervention"),
        ({"intervention": "../../etc/passwd"}, "intervention"),
    ],
)  # fmt: skip
def test_bad_field_is_refused_by_name(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str
) -> None:
    error = refuse(client, COMPLETIONS, 400, json={"prompt": "a", **fields})
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert engine.submitted == []


@pytest.mark.parametrize("name", sorted(CompletionRequest.unserved))
def test_unserved_field_is_refused_by_name(client: TestClient, name: str) -> None:
    error = refuse(client, COMPLETIONS, 400, json={"prompt": "a", name: [{"asked": "for"}]})
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)


@pytest.mark.parametrize("name", sorted(ChatCompletionRequest.unserved))
def test_unserved_chat_field_is_refused_by_name(client: TestClient, name: str) -> None:
    error = refuse(client, CHAT, 400, json={"messages": MESSAGES, name: [{"asked": "for"}]})
    assert (error["code"], error["param"]) == ("unsupported_parameter", name)


@pytest.mark.parametrize(
    "fields",
    [
        {name: values[0] for name, values in CompletionRequest.unserved.items() if values},
        {"temperature": None, "stop": None, "logit_bias": None, "suffix": None},
        {"user": "me", "some_field_of_a_newer_api": {"x": 1}, "metadata": {}},
    ],
)
def test_neutral_and_unknown_fields_are_accepted(client: TestClient, fields: dict[str, Any]) -> None:
    assert client.post(COMPLETIONS, json={"prompt": "a", **fields}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"text"', b"null", b"17", b"\xff\xfe", b"{'a': 1}", b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}', b'{"prompt": "a", "temperature": Infinity}',
        b'{"prompt": "a", "min_p": NaN}', b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"prompt": "a", "x": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}",
    ],
)  # fmt: skip
def test_malformed_body_is_a_400(client: TestClient, engine: FakeEngine, body: bytes) -> None:
    refuse(client, COMPLETIONS, 400, content=body, headers={"content-type": "application/json"})
    assert engine.submitted == []


def test_form_body_is_a_400_that_says_what_to_send(client: TestClient) -> None:
    error = refuse(client, COMPLETIONS, 400, data={"prompt": "a"})
    assert "application/json" in error["message"]


def chunks(total: int) -> Any:
    yield from (b" " * 1000 for _ in range(total // 1000))


@pytest.mark.parametrize("content", [b" " * 5000, chunks(5000)], ids=["declared", "chunked"])
def test_body_beyond_the_limit_is_a_413(make_client: Any, content: Any) -> None:
    client = make_client(max_body_bytes=2000)
    error = refuse(client, COMPLETIONS, 413, content=content, headers={"content-type": "application/json"})
    assert error["code"] == "payload_too_large"
    assert client.post(COMPLETIONS, json={"prompt": "a"}).status_code == 200


def test_too_many_answers_are_refused(make_client: Any) -> None:
    error = refuse(make_client(max_choices_per_request=3), COMPLETIONS, 400, json={"prompt": ["a", "b"], "n": 2})
    assert error["param"] == "n"


def test_prompt_that_never_fits_says_the_numbers(client: TestClient) -> None:
    error = refuse(client, COMPLETIONS, 400, json={"prompt": [5] * 200, "max_tokens": 100})
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in ("200", "100", "256"))


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "route_not_found"),
        ("POST", "/v1/completions/", 404, "route_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/interventions", 405, "method_not_allowed"),
    ],
)
def test_wrong_route_is_an_error_object(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": "first"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "long " * 1000}]}, "messages"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, None),
        ({"top_logprobs": 2}, None),
        ({"logprobs": 3}, "logprobs"),
    ],
)
def test_bad_chat_field_is_refused_by_name(client: TestClient, fields: dict[str, Any], param: str | None) -> None:
    assert refuse(client, CHAT, 400, json={"messages": MESSAGES, **fields})["param"] == param


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 20),
    st.floats(),
    st.sampled_from(["", "a", "base", "base:", "@", "a@", "a@0", "a@sha256:", "sha256:", "\ud800", "\x00", "a" * 600]),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "version", "scale", "role", "content", "type", "text", "include_usage", "x"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("url", "model", "good"),
    [(COMPLETIONS, CompletionRequest, {"prompt": "a"}), (CHAT, ChatCompletionRequest, {"messages": MESSAGES})],
    ids=["completions", "chat"],
)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_value_of_any_field_breaks_the_server(
    client: TestClient, url: str, model: type[CompletionRequest], good: dict[str, Any], data: st.DataObject
) -> None:
    names = st.sampled_from([*model.model_fields, *model.unserved])
    fields = data.draw(st.dictionaries(names, VALUES, min_size=1, max_size=3))
    response = client.post(url, content=json.dumps({**good, **fields}), headers={"content-type": "application/json"})
    assert response.status_code < 500, (fields, response.text)
    assert response.status_code == 200 or response.json()["error"]["message"]
