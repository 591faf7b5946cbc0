"""`/v1/chat/completions` around the fake engine."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizers import byte_level_tokenizer

from .test_completions import events, script_text

URL = "/v1/chat/completions"
MESSAGES = [{"role": "developer", "content": "Be kind"}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def post(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json={"messages": MESSAGES, **body})
    assert response.status_code == 200, response.text
    payload: dict[str, Any] = response.json()
    return payload


def test_chat_renders_the_models_template(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    post(client)
    assert tokenizer.decode(list(engine.submitted[0].prompt_token_ids)) == "<system>Be kind\n<user>Hi\n<assistant>"


def test_chat_answers_in_openais_shape(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    ids = script_text(engine, tokenizer, "Hello 🙂")
    payload = post(client)
    assert payload["object"] == "chat.completion"
    assert payload["id"].startswith("chatcmpl-")
    assert payload["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello 🙂"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert payload["usage"]["completion_tokens"] == len(ids) + 1


def test_chat_max_tokens_defaults_to_what_is_left(client: TestClient, engine: FakeEngine) -> None:
    post(client)
    request = engine.submitted[0]
    assert request.sampling.max_tokens == engine.max_model_len - len(request.prompt_token_ids)


def test_chat_max_tokens_default_is_capped_by_the_setting(make_client: Any, engine: FakeEngine) -> None:
    post(make_client(max_chat_tokens=5))
    assert engine.submitted[0].sampling.max_tokens == 5


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_chat_max_tokens_goes_by_both_names(client: TestClient, engine: FakeEngine, field: str) -> None:
    post(client, **{field: 3})
    assert engine.submitted[0].sampling.max_tokens == 3


def test_chat_stream_starts_with_the_role_and_joins_to_the_answer(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast
) -> None:
    script_text(engine, tokenizer, "Hello 🙂 there")
    chunks = events(client, URL, messages=MESSAGES, n=2, stream_options={"include_usage": True})
    assert chunks.pop() == "[DONE]"
    assert chunks.pop()["choices"] == []
    for index in range(2):
        deltas = [c["choices"][0]["delta"] for c in chunks if c["choices"][0]["index"] == index]
        assert deltas[0]["role"] == "assistant"
        assert all("role" not in delta for delta in deltas[1:])
        assert "".join(delta["content"] for delta in deltas) == "Hello 🙂 there"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


def test_chat_logprobs_carry_bytes(client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = script_text(engine, tokenizer, "Hello 🚲")
    content = post(client, logprobs=True, top_logprobs=2)["choices"][0]["logprobs"]["content"]
    assert len(content) == len(ids)
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "Hello 🚲"
    assert [len(token["top_logprobs"]) for token in content] == [2] * len(ids)
    assert content[0]["token"] == content[0]["top_logprobs"][0]["token"]


def test_chat_without_a_template_says_what_to_do(make_client: Any) -> None:
    client = make_client(tokenizer=byte_level_tokenizer(chat_template=None))
    response = client.post(URL, json={"messages": MESSAGES})
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


def test_tokenize_and_detokenize_agree_with_the_routes(client: TestClient, engine: FakeEngine) -> None:
    post(client)
    tokens = client.post("/tokenize", json={"messages": MESSAGES}).json()
    assert tuple(tokens["tokens"]) == engine.submitted[0].prompt_token_ids
    assert (tokens["count"], tokens["max_model_len"]) == (len(tokens["tokens"]), 256)
    text = "Grüße " * 1000
    tokens = client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
    assert client.post("/detokenize", json={"tokens": [10**6]}).json()["error"]["param"] == "tokens"
