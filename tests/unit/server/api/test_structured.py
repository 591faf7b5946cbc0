"""Every field that asks for a form of the answer reaches the engine as the same kind of grammar."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from reft_server.engine.types import Grammar
from tests.fakes.engine import EOS, FakeEngine

MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
NAMED = {"name": "thing", "schema": SCHEMA, "strict": True}


def lets_through(grammar: Grammar | None, tokenizer: PreTrainedTokenizerFast, text: str) -> bool:
    assert grammar is not None
    matcher = grammar.matcher()
    for token_id in tokenizer(text)["input_ids"]:
        if not matcher.allowed()[token_id]:
            return False
        matcher.accept(token_id)
    return bool(matcher.allowed()[EOS])


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"x": [1]}', "[1]"),
        ({"response_format": {"type": "json_schema", "json_schema": NAMED}}, '{"a": 1}', '{"x": 1}'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, '{"x": 1}', "1"),
        ({"structured_outputs": {"json": SCHEMA}}, '{"a": 1}', '{"x": 1}'),
        ({"structured_outputs": {"json": '{"type": "integer"}'}}, "12", "a"),
        ({"structured_outputs": {"json_object": True}}, "{}", "1"),
        ({"structured_outputs": {"regex": "a+b"}}, "aab", "ba"),
        ({"structured_outputs": {"choice": ["Paris", "München"]}}, "München", "Rome"),
        ({"structured_outputs": {"grammar": 'start: "a" | "b" start'}}, "bba", "ab"),
        ({"guided_json": SCHEMA}, '{"a": 1}', "{}"),
        ({"guided_regex": "a+b"}, "aab", "ba"),
        ({"guided_choice": ["Paris"]}, "Paris", "Rome"),
        ({"guided_grammar": 'root ::= "a" | "b" root'}, "bba", "ab"),
    ],
)
@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
def test_form_of_the_answer_reaches_the_engine(
    client: TestClient,
    engine: FakeEngine,
    tokenizer: PreTrainedTokenizerFast,
    url: str,
    fields: Any,
    good: str,
    bad: str,
) -> None:
    prompt = {"messages": MESSAGES} if "chat" in url else {"prompt": ["a", "b"], "n": 2}
    response = client.post(url, json={**prompt, "max_tokens": 4, **fields})
    assert response.status_code == 200, response.text
    for request in engine.submitted:
        assert lets_through(request.sampling.grammar, tokenizer, good)
        assert not lets_through(request.sampling.grammar, tokenizer, bad)


@pytest.mark.parametrize("fields", [{}, {"response_format": {"type": "text"}}, {"response_format": None}])
def test_free_text_has_no_grammar(client: TestClient, engine: FakeEngine, fields: Any) -> None:
    assert client.post("/v1/completions", json={"prompt": "a", **fields}).status_code == 200
    assert engine.submitted[0].sampling.grammar is None


def test_grammar_beyond_the_limit_is_refused(make_client: Any, engine: FakeEngine) -> None:
    client = make_client(max_grammar_bytes=100)
    response = client.post("/v1/completions", json={"prompt": "a", "guided_regex": "a" * 101})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "grammar_too_complex"
    assert response.json()["error"]["param"] == "guided_regex"
    assert engine.submitted == []


def test_bad_grammar_says_what_is_wrong(client: TestClient) -> None:
    body = {
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {**NAMED, "schema": {"if": {}}}},
    }
    error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_grammar", "response_format")
    assert '"if"' in error["message"]
