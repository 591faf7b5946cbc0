"""Tool calls: rendered by the template, found in the text whatever pieces it comes in, and forced by a grammar."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from reft_server.api.tool_calls import (
    CallPiece,
    ForcedCallParser,
    ForcedListParser,
    HermesParser,
    LlamaParser,
    ToolParser,
    tool_syntax,
)
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizers import CHAT_TEMPLATE, byte_level_tokenizer

from .test_completions import events, script_text
from .test_structured import lets_through

URL = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
HERMES = (
    "{% if tools %}{% for tool in tools %}[{{ tool.function.name }}]{% endfor %}<tool_call>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}"
    "({{ call.function.name }}:{{ call.function.arguments.city }}){% endfor %}"
    "{% endfor %}<assistant>"
)
LLAMA = HERMES.replace("<tool_call>", '{# ipython #}"parameters"')
PLACE = {"type": "object", "properties": {"city": {"$ref": "#/$defs/Name"}}, "required": ["city"],
         "additionalProperties": False, "$defs": {"Name": {"type": "string"}}}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Of a city", "parameters": PLACE}},
    {"type": "function", "function": {"name": "now"}},
]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "München"}}\n</tool_call>'
NOW = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
NAMED = {"type": "function", "function": {"name": "weather"}}
Found = tuple[str, list[tuple[str, Any]]]


@pytest.fixture(scope="module")
def hermes() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer(chat_template=HERMES)


@pytest.fixture
def calling(make_client: Any, hermes: PreTrainedTokenizerFast) -> TestClient:
    client: TestClient = make_client(hermes)
    return client


def call(arguments: str) -> dict[str, Any]:
    """A turn's call of `weather`."""
    return {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}


def parse(parser: ToolParser, pieces: list[str]) -> Found:
    """The content, and (name, arguments) of each call."""
    content, calls = "", dict[int, list[str]]()
    for piece in [one for text in pieces for one in parser.push(text)] + list(parser.flush()):
        if isinstance(piece, CallPiece):
            calls.setdefault(piece.index, [piece.name or ""]).append(piece.arguments)
        else:
            content += piece
    return content, [(name, json.loads("".join(arguments))) for name, *arguments in calls.values()]


CASES: list[tuple[type[ToolParser], str, Found]] = [
    (HermesParser, "Hello there ", ("Hello there ", [])),
    (HermesParser, WEATHER, ("", [("weather", {"city": "München"})])),
    (HermesParser, f"I look.\n{WEATHER}\n{NOW}\n", ("I look.", [("weather", {"city": "München"}), ("now", {})])),
    (HermesParser, f"{NOW} done", (" done", [("now", {})])),
    (HermesParser, WEATHER.removesuffix("</tool_call>"), ("", [("weather", {"city": "München"})])),
    (HermesParser, "<tool_call>{nonsense}</tool_call>x", ("<tool_call>{nonsense}</tool_call>x", [])),
    (HermesParser, '<tool_call>{"name": "now"}</tool_call>', ('<tool_call>{"name": "now"}</tool_call>', [])),
    (HermesParser, '<tool_call>{"name": "no', ('<tool_call>{"name": "no', [])),
    (HermesParser, "1 < 2 <tool_ca", ("1 < 2 <tool_ca", [])),
    (LlamaParser, ' {"name": "now", "parameters": {}}\n', ("", [("now", {})])),
    (LlamaParser, '{"name": "now", "parameters": {}}; {"name": "b", "parameters": {"c": 1}}',
     ("", [("now", {}), ("b", {"c": 1})])),
    (LlamaParser, "Hello {", ("Hello {", [])),
    (LlamaParser, '{"a": 1}', ('{"a": 1}', [])),
    (LlamaParser, '{"name": "now", "parameters": {', ('{"name": "now", "parameters": {', [])),
    (ForcedListParser, '[{"name": "now", "parameters": {}}, {"name": "b", "parameters": {"c": [{}]}} ]',
     ("", [("now", {}), ("b", {"c": [{}]})])),
    (ForcedListParser, '[{"name": "now", "parameters": {}}, {"name": "b", "para',
     ('{"name": "b", "para', [("now", {})])),
]  # fmt: skip


@pytest.mark.parametrize(("parser", "text", "found"), CASES)
@given(cuts=st.sets(st.integers(0, 120), max_size=12))
@settings(max_examples=25, deadline=None)
def test_calls_are_found_whatever_pieces_the_text_comes_in(
    parser: type[ToolParser], text: str, found: Found, cuts: set[int]
) -> None:
    ends = sorted(cut for cut in cuts if cut < len(text))
    pieces = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    assert parse(parser(), pieces) == found


def test_arguments_of_the_named_function_leave_as_they_come() -> None:
    parser = ForcedCallParser("weather")
    pieces = [piece for text in ('{"ci', "", 'ty": 1}') for piece in parser.push(text)]
    assert [piece.arguments for piece in pieces if isinstance(piece, CallPiece)] == ['{"ci', 'ty": 1}']
    assert [piece.name for piece in pieces if isinstance(piece, CallPiece)] == ["weather", None]


@pytest.mark.parametrize(
    ("template", "syntax"),
    [(HERMES, "hermes"), (LLAMA, "llama"), (CHAT_TEMPLATE, None), ("{{ tools }}", None), ("{% broken", None)],
)
def test_syntax_comes_from_the_template(template: str, syntax: str | None) -> None:
    assert tool_syntax(template) == syntax


@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}])
def test_tools_reach_the_template_and_calls_the_message(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast, choice: dict[str, Any]
) -> None:
    script_text(engine, hermes, f"I look.\n{WEATHER}\n{NOW}")
    body = {"messages": MESSAGES, "tools": TOOLS, **choice}
    reply = calling.post(URL, json=body).json()["choices"][0]
    assert hermes.decode(list(engine.submitted[0].prompt_token_ids)).startswith("[weather][now]<tool_call><user>hi")
    assert engine.submitted[0].sampling.grammar is None
    assert reply["finish_reason"] == "tool_calls"
    assert reply["message"]["content"] == "I look."
    calls = reply["message"]["tool_calls"]
    assert [call["function"] for call in calls] == [
        {"name": "weather", "arguments": '{"city": "München"}'},
        {"name": "now", "arguments": "{}"},
    ]
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    assert calls[0]["id"] != calls[1]["id"]


def test_one_call_where_several_are_not_wanted(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast
) -> None:
    script_text(engine, hermes, WEATHER + NOW)
    body = {"messages": MESSAGES, "tools": TOOLS, "parallel_tool_calls": False}
    message = calling.post(URL, json=body).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather"]


def test_streamed_calls_join_to_the_whole_ones(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast
) -> None:
    script_text(engine, hermes, f"I look.\n{WEATHER}\n{NOW}")
    chunks = [chunk["choices"][0] for chunk in events(calling, URL, messages=MESSAGES, tools=TOOLS)[:-1]]
    assert chunks[-1]["finish_reason"] == "tool_calls"
    assert chunks[0]["delta"]["role"] == "assistant"
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == "I look."
    calls = [call for chunk in chunks for call in chunk["delta"].get("tool_calls", ())]
    assert [(call["index"], call["function"]["name"]) for call in calls] == [(0, "weather"), (1, "now")]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"city": "München"}, {}]


def test_none_hides_the_tools_and_leaves_the_text(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast
) -> None:
    script_text(engine, hermes, NOW)
    reply = calling.post(URL, json={"messages": MESSAGES, "tools": TOOLS, "tool_choice": "none"}).json()["choices"][0]
    assert "[weather]" not in hermes.decode(list(engine.submitted[0].prompt_token_ids))
    assert reply["message"] == {"role": "assistant", "content": NOW}
    assert reply["finish_reason"] == "stop"


@pytest.mark.parametrize("is_streamed", [False, True])
def test_required_calls_are_forced(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast, is_streamed: bool
) -> None:
    text = '[{"name": "weather", "parameters": {"city": "Rome"}}]'
    script_text(engine, hermes, text)
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": "required"}
    if is_streamed:
        deltas = [chunk["choices"][0] for chunk in events(calling, URL, **body)[:-1]]
        assert deltas[-1]["finish_reason"] == "tool_calls"
        (made,) = [made for one in deltas for made in one["delta"].get("tool_calls", ())]
    else:
        reply = calling.post(URL, json=body).json()["choices"][0]
        assert (reply["finish_reason"], reply["message"]["content"]) == ("tool_calls", None)
        (made,) = reply["message"]["tool_calls"]
    assert made["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    grammar = engine.submitted[0].sampling.grammar
    assert lets_through(grammar, hermes, text)
    assert lets_through(grammar, hermes, text[:-1] + ', {"name": "now", "parameters": {}}]')
    for wrong in ("[]", '[{"name": "weather", "parameters": {}}]', '[{"name": "x", "parameters": {}}]', "Hello"):
        assert not lets_through(grammar, hermes, wrong)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_named_function_is_forced(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast, is_streamed: bool
) -> None:
    script_text(engine, hermes, '{"city": "Rome"}')
    body = {"messages": MESSAGES, "tools": TOOLS, "tool_choice": NAMED}
    if is_streamed:
        deltas = [chunk["choices"][0] for chunk in events(calling, URL, **body)[:-1]]
        calls = [call for one in deltas for call in one["delta"].get("tool_calls", ())]
        assert len({call["index"] for call in calls}) == 1 < len(calls)
        assert calls[0]["function"]["name"] == "weather"
        arguments = "".join(call["function"]["arguments"] for call in calls)
        reason = deltas[-1]["finish_reason"]
    else:
        reply = calling.post(URL, json=body).json()["choices"][0]
        arguments, reason = reply["message"]["tool_calls"][0]["function"]["arguments"], reply["finish_reason"]
    assert (arguments, reason) == ('{"city": "Rome"}', "stop")
    assert not lets_through(engine.submitted[0].sampling.grammar, hermes, "{}")


def test_results_of_calls_go_back_through_the_template(
    calling: TestClient, engine: FakeEngine, hermes: PreTrainedTokenizerFast
) -> None:
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call('{"city": "Rome"}')]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert calling.post(URL, json={"messages": turns}).status_code == 200
    rendered = hermes.decode(list(engine.submitted[0].prompt_token_ids))
    assert rendered == "<user>hi<assistant>(weather:Rome)<tool>sunny<assistant>"
    tokens = calling.post("/tokenize", json={"messages": turns, "tools": TOOLS}).json()["tokens"]
    assert hermes.decode(tokens) == "[weather][now]<tool_call>" + rendered


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, None),
        ({"tool_choice": "required"}, None),
        ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, None),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [call("{}")]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": [call("{")]}]}, "messages[0].tool_calls"),
    ],
)  # fmt: skip
def test_bad_tools_are_refused_by_name(
    calling: TestClient, engine: FakeEngine, fields: dict[str, Any], param: str | None
) -> None:
    response = calling.post(URL, json={"messages": MESSAGES, **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS}, "tools"),
        ({"tools": TOOLS, "tool_choice": NAMED}, "tools"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"),
    ],
)
def test_template_without_tools_refuses_them(client: TestClient, fields: dict[str, Any], param: str) -> None:
    error = client.post(URL, json={"messages": MESSAGES, **fields}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", param)
    assert client.post(URL, json={"messages": MESSAGES, "tools": TOOLS, "tool_choice": "none"}).status_code == 200
