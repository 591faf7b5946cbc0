"""The wire types: what they accept, what they refuse, and how they normalise it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from reft_client.types import (
    ChatCompletionRequest,
    ChatMessage,
    CompletionRequest,
    CompletionResponse,
    InterventionRef,
    TenantLimits,
    TokenizeRequest,
)

USER = {"role": "user", "content": "hi"}


def problems(error: ValidationError) -> list[str]:
    return [".".join(str(part) for part in item["loc"]) for item in error.errors()]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", True),
        ("temperature", "1"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 1.0),
        ("max_tokens", True),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("n", 0),
        ("n", 17),
        ("seed", 2**63),
        ("seed", False),
        ("logprobs", 21),
        ("logprobs", True),
        ("stream", 1),
        ("stream", "true"),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]),
        ("ignore_eos", "no"),
        ("model", ""),
        ("model", 7),
        ("intervention", 7),
        ("intervention", ""),
        ("intervention", "name@"),
        ("intervention", "@3"),
        ("intervention", [[]]),
        ("intervention", ["a"] * 17),
        ("intervention", {"version": 3}),
        ("intervention", {"name": "a", "scale": math.nan}),
        ("intervention", {"name": "a", "scale": True}),
        ("intervention", {"name": "a", "version": 0}),
        ("intervention", {"name": "a", "strength": 1}),
        ("intervention", {"name": "a", "subspaces": [True]}),
        ("intervention", {"name": "a", "subspaces": "0"}),
        ("intervention", {"name": "a", "source": []}),
        ("intervention", {"name": "a", "source": [1, "b"]}),
        ("intervention", {"name": "a", "source": [{"role": "robot", "content": "x"}]}),
        ("intervention", {"name": "a@3", "version": 4}),
        ("prompt", "\ud800"),
        ("prompt", ["a", "\udfff"]),
        ("stop", "\ud800"),
        ("user", "\ud800"),
        ("model", "\ud800"),
        ("intervention", "\ud800"),
        ("intervention", {"name": "a", "version": "\ud800"}),
        ("prompt", []),
        ("prompt", [1, True]),
        ("prompt", [1, "a"]),
        ("prompt", [[]]),
        ("prompt", [-1]),
        ("prompt", [1.0]),
        ("prompt", {}),
        ("prompt", ["x"] * 1025),
    ],
)
def test_completion_request_refuses_bad_value_at_its_field(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"prompt": "x", field: value})
    assert len(problems(caught.value)) == 1
    assert problems(caught.value)[0].split(".")[0] == field


def test_completion_request_refuses_number_too_large_for_a_float() -> None:
    with pytest.raises(ValidationError):
        CompletionRequest.model_validate(json.loads('{"prompt": "x", "temperature": 1e999}'))


def test_request_takes_null_as_absent() -> None:
    request = CompletionRequest.model_validate({"prompt": "x", "temperature": None, "max_tokens": None, "stop": None})
    assert (request.temperature, request.max_tokens, request.stop_strings) == (1.0, 16, ())
    assert request.model_fields_set == {"prompt"}


def test_request_without_prompt_is_refused() -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"prompt": None})
    assert problems(caught.value) == ["prompt"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a", ("a",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ([1, 2],)),
        ([[1, 2], [3]], ([1, 2], [3])),
    ],
)
def test_completion_request_prompts_have_one_shape(prompt: object, expected: object) -> None:
    assert CompletionRequest.model_validate({"prompt": prompt}).prompts == expected


@pytest.mark.parametrize(("stop", "expected"), [("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())])
def test_request_stop_strings_have_one_shape(stop: object, expected: object) -> None:
    assert CompletionRequest.model_validate({"prompt": "x", "stop": stop}).stop_strings == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, []),
        ([], []),
        ("a", [("a", None, 1.0)]),
        ("a@3", [("a", 3, 1.0)]),
        ("a@sha256:ff", [("a", "sha256:ff", 1.0)]),
        ("a@stable", [("a", "stable", 1.0)]),
        ({"name": "a", "version": "3", "scale": -1}, [("a", 3, -1.0)]),
        ({"name": "a@3", "version": 3}, [("a", 3, 1.0)]),
        (["a@2", {"name": "b", "version": None, "scale": 0.5}], [("a", 2, 1.0), ("b", None, 0.5)]),
    ],
)
def test_request_intervention_refs_have_one_shape(value: object, expected: list[tuple[Any, ...]]) -> None:
    refs = CompletionRequest.model_validate({"prompt": "x", "intervention": value}).intervention_refs()
    assert [(ref.name, ref.version, ref.scale) for ref in refs] == expected


@pytest.mark.parametrize("name", ["a", "a@3", "a@sha256:00ff"])
def test_intervention_ref_prints_as_it_is_written(name: str) -> None:
    assert str(InterventionRef(name=name)) == name


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        ({"best_of": 1, "bad_words": [], "length_penalty": 1.0, "suffix": ""}, ()),
        ({"best_of": None, "suffix": None}, ()),
        ({"some_future_field": 1}, ()),
        ({"best_of": 2}, ("best_of",)),
        ({"echo": True}, ()),
        ({"length_penalty": 0.1, "bad_words": ["x"]}, ("bad_words", "length_penalty")),
        ({"presence_penalty": 0.1, "frequency_penalty": -1, "logit_bias": {"1": 5}, "min_p": 0.1}, ()),
        ({"response_format": {"type": "text"}}, ()),
        ({"response_format": {"type": "json_object"}}, ()),
        ({"logprobs": 1, "prompt_logprobs": 1}, ("prompt_logprobs",)),
    ],
)
def test_request_names_what_is_not_served(fields: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert CompletionRequest.model_validate({"prompt": "x", **fields}).unserved_parameters() == expected


def test_chat_request_names_functions_as_not_served() -> None:
    fields = {"messages": [USER], "functions": [{"name": "f"}], "function_call": "auto"}
    assert ChatCompletionRequest.model_validate(fields).unserved_parameters() == ("function_call", "functions")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_logprobs": 2}, "top_logprobs needs logprobs"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "contradict"),
        ({"stream_options": {"include_usage": True}}, "needs stream"),
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}]}, "only"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}]}, "tool_calls"),
        ({"messages": [{"role": "user"}]}, "required"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "surrogate"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]}, "surrogate"),
        ({"logprobs": 1}, "boolean"),
    ],
)
def test_chat_request_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ChatCompletionRequest.model_validate({"messages": [USER], **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [({}, None), ({"max_tokens": 3}, 3), ({"max_completion_tokens": 4}, 4), ({"max_tokens": 5} | {"n": 1}, 5)],
)
def test_chat_request_limit_has_one_name(fields: dict[str, Any], expected: int | None) -> None:
    assert ChatCompletionRequest.model_validate({"messages": [USER], **fields}).max_new_tokens == expected


def test_chat_message_text_joins_parts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert ChatMessage.model_validate({"role": "user", "content": parts}).text == "a\nb"


def test_chat_message_takes_back_what_an_sdk_echoes() -> None:
    echoed = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": None, "annotations": []}
    assert ChatMessage.model_validate(echoed).text == "x"


@pytest.mark.parametrize("fields", [{}, {"prompt": "x", "messages": [USER]}])
def test_tokenize_request_needs_exactly_one_input(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="either prompt or messages"):
        TokenizeRequest.model_validate(fields)


def test_response_keeps_what_a_newer_server_adds() -> None:
    data = {"id": "c", "created": 1, "model": "m", "choices": [{"text": "x", "new": 1}], "newer": 2}
    dumped = CompletionResponse.model_validate(data).model_dump()
    assert (dumped["newer"], dumped["choices"][0]["new"]) == (2, 1)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([*CompletionRequest.model_fields, "name"]), json_values)
def test_completion_request_accepts_or_refuses_but_never_breaks(field: str, value: object) -> None:
    try:
        request = CompletionRequest.model_validate({"prompt": "x", field: value})
    except ValidationError:
        return
    request.unserved_parameters()
    assert CompletionRequest.model_validate_json(request.model_dump_json(exclude_unset=True)) == request


@given(json_values)
def test_intervention_argument_accepts_or_refuses_but_never_breaks(value: object) -> None:
    try:
        request = CompletionRequest.model_validate({"prompt": "x", "intervention": value})
    except ValidationError:
        return
    assert all(ref.name and math.isfinite(ref.scale) for ref in request.intervention_refs())


def test_null_is_absent_but_hides_no_unknown_field_of_a_strict_body() -> None:
    assert TenantLimits.model_validate({"max_sets": None}) == TenantLimits()
    with pytest.raises(ValidationError, match="extra"):
        TenantLimits.model_validate({"max_stes": None})
