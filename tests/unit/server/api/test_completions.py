"""`/v1/completions` around the fake engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from reft_server.errors import EngineOverloadedError, EngineStepError, RequestTimeoutError
from tests.fakes.engine import FakeEngine

URL = "/v1/completions"


def post(client: TestClient, **body: Any) -> dict[str, Any]:
    response = client.post(URL, json={"prompt": "The capital", "max_tokens": 100, **body})
    assert response.status_code == 200, response.text
    payload: dict[str, Any] = response.json()
    return payload


def events(client: TestClient, url: str = URL, **body: Any) -> list[Any]:
    body = {"prompt": "The capital", "max_tokens": 100, **body} if url == URL else body
    with client.stream("POST", url, json={"stream": True, **body}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line[6:] == "[DONE]" else json.loads(line[6:]) for line in lines]


def script_text(engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    engine.script = lambda _: ids
    return ids


def test_completion_answers_in_openais_shape(client: TestClient, engine: FakeEngine) -> None:
    payload = post(client)
    num = len(engine.submitted[0].prompt_token_ids)
    assert payload["object"] == "text_completion"
    assert payload["id"].startswith("cmpl-")
    assert payload["model"] == "tests/tiny"
    assert payload["choices"] == [{"index": 0, "text": "The capital", "logprobs": None, "finish_reason": "stop"}]
    assert payload["usage"] == {
        "prompt_tokens": num,
        "completion_tokens": num + 1,
        "total_tokens": 2 * num + 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_completion_max_tokens_defaults_to_16(client: TestClient, engine: FakeEngine) -> None:
    response = client.post(URL, json={"prompt": "a" * 40})
    assert engine.submitted[0].sampling.max_tokens == 16
    assert response.json()["choices"][0]["finish_reason"] == "length"


def test_completion_default_max_tokens_shrinks_to_what_is_left(client: TestClient, engine: FakeEngine) -> None:
    assert client.post(URL, json={"prompt": [5] * 250}).status_code == 200
    assert engine.submitted[0].sampling.max_tokens == 6


def test_completion_passes_the_sampling_on(client: TestClient, engine: FakeEngine) -> None:
    post(client, temperature=0, top_p=0.5, top_k=-1, seed=7, stop_token_ids=[3], ignore_eos=True, logprobs=2)
    sampling = engine.submitted[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.0, 0.5, 0, 7)
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.num_logprobs) == (frozenset({3}), True, 2)


def test_completion_passes_penalties_and_biases_on(client: TestClient, engine: FakeEngine) -> None:
    fields = {"min_p": 0.1, "min_tokens": 2, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.2}
    post(client, logit_bias={"5": -100, "05": 3}, **fields)
    sampling = engine.submitted[0].sampling
    assert {name: getattr(sampling, name) for name in fields} == fields
    assert sampling.logit_bias == ((5, 3.0),)


@pytest.mark.parametrize("is_streamed", [False, True])
def test_completion_min_tokens_holds_for_stop_strings(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, is_streamed: bool
) -> None:
    num_tokens = len(tokenizer("x STOP", add_special_tokens=False)["input_ids"])
    script_text(engine, tokenizer, "x STOP y STOP z")
    fields = {"stop": "STOP", "min_tokens": num_tokens}
    if is_streamed:
        text = "".join(chunk["choices"][0]["text"] for chunk in events(client, **fields)[:-1])
    else:
        text = post(client, **fields)["choices"][0]["text"]
    assert text == "x STOP y "


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1, 100])
def test_completion_echo_puts_the_prompt_first(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, max_tokens: int, is_streamed: bool
) -> None:
    prompt, answer = "The caf\u00e9 \N{SEAT}", " is nice"
    ids = script_text(engine, tokenizer, answer)[:max_tokens]
    fields = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    if is_streamed:
        choices = [chunk["choices"][0] for chunk in events(client, **fields)[:-1]]
    else:
        choices = [post(client, **fields)["choices"][0]]
    text = "".join(choice["text"] for choice in choices)
    assert text == prompt + tokenizer.decode(ids)
    logprobs = {
        name: [item for choice in choices for item in choice["logprobs"][name]] for name in choices[0]["logprobs"]
    }
    prompt_ids = engine.submitted[0].prompt_token_ids
    assert len(logprobs["tokens"]) == len(prompt_ids) + len(ids)
    assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
    assert None not in logprobs["token_logprobs"][1:] + logprobs["top_logprobs"][1:]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert token.startswith("bytes:") or text.startswith(token, offset)


def test_completion_echo_of_token_ids_is_their_text(client: TestClient, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("One two", "Three")]
    choices = post(client, prompt=ids, echo=True, max_tokens=1, n=2)["choices"]
    assert [choice["logprobs"] for choice in choices] == [None] * 4
    starts = [tokenizer.decode([*one, one[0]]) for one in ids]
    assert [choice["text"] for choice in choices] == [starts[0], starts[0], starts[1], starts[1]]


def test_completion_echo_with_a_stop_string_in_the_prompt_goes_on(client: TestClient) -> None:
    choice = post(client, prompt="One STOP", echo=True, stop="STOP")["choices"][0]
    assert choice["text"] == "One STOPOne "


def test_completion_usage_counts_no_echo(client: TestClient) -> None:
    assert post(client, echo=True, max_tokens=0)["usage"]["completion_tokens"] == 0


def test_completion_choices_are_prompt_major(client: TestClient, engine: FakeEngine) -> None:
    payload = post(client, prompt=["aa", "bb"], n=2, seed=1)
    assert [(choice["index"], choice["text"]) for choice in payload["choices"]] == [
        (0, "aa"), (1, "aa"), (2, "bb"), (3, "bb"),
    ]  # fmt: skip
    assert [request.sampling.seed for request in engine.submitted] == [1, 2, 1, 2]
    assert len({request.request_id for request in engine.submitted}) == 4
    assert payload["usage"]["prompt_tokens"] == sum(len(engine.submitted[i].prompt_token_ids) for i in (0, 2))


def test_completion_takes_token_ids(client: TestClient, engine: FakeEngine) -> None:
    payload = post(client, prompt=[[5, 6], [7]], return_token_ids=True)
    assert [request.prompt_token_ids for request in engine.submitted] == [(5, 6), (7,)]
    assert [choice["prompt_token_ids"] for choice in payload["choices"]] == [[5, 6], [7]]
    assert [choice["token_ids"] for choice in payload["choices"]] == [[5, 6, 0], [7, 0]]


@pytest.mark.parametrize("stream", [False, True])
def test_completion_stops_at_a_stop_string_and_cancels(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, stream: bool
) -> None:
    script_text(engine, tokenizer, "x y STOP and on and on and on")
    if stream:
        chunks = events(client, stop=["nope", "STOP"])[:-1]
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        reason = chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = post(client, stop=["nope", "STOP"])["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    assert (text, reason) == ("x y ", "stop")
    assert engine.streams[0].is_cancelled
    assert engine.streams[0].num_tokens < 20


def test_completion_stream_joins_to_the_whole_answer(client: TestClient, engine: FakeEngine) -> None:
    chunks = events(client, prompt=["Grüße 🙂🚀", "東京"], n=2)
    assert chunks.pop() == "[DONE]"
    texts = dict.fromkeys(range(4), "")
    for chunk in chunks:
        (choice,) = chunk["choices"]
        assert "\ufffd" not in choice["text"]
        assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "Grüße 🙂🚀", 1: "Grüße 🙂🚀", 2: "東京", 3: "東京"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert sum(chunk["choices"][0]["finish_reason"] == "stop" for chunk in chunks) == 4
    assert all("usage" not in chunk for chunk in chunks)


def test_completion_stream_ends_with_usage_where_asked(client: TestClient, engine: FakeEngine) -> None:
    chunks = events(client, stream_options={"include_usage": True})
    assert chunks.pop() == "[DONE]"
    last = chunks.pop()
    num = len(engine.submitted[0].prompt_token_ids)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": num,
        "completion_tokens": num + 1,
        "total_tokens": 2 * num + 1,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert all(chunk["usage"] is None for chunk in chunks)


@pytest.mark.parametrize("step", [1, 3, 100])
def test_completion_logprobs_line_up_with_the_text(client: TestClient, engine: FakeEngine, step: int) -> None:
    engine.step = step
    logprobs = post(client, prompt="The capital 🙂", logprobs=2)["choices"][0]["logprobs"]
    num = len(engine.submitted[0].prompt_token_ids)
    assert [len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [num] * 4
    assert logprobs["token_logprobs"] == [-0.5] * num
    for token, offset, top in zip(logprobs["tokens"], logprobs["text_offset"], logprobs["top_logprobs"], strict=True):
        assert token.startswith("bytes:") or "The capital 🙂"[offset:].startswith(token)
        assert top[token] == -0.5


def test_completion_logprobs_0_has_no_alternatives(client: TestClient) -> None:
    logprobs = post(client, logprobs=0)["choices"][0]["logprobs"]
    assert logprobs["top_logprobs"] is None
    assert logprobs["token_logprobs"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (EngineOverloadedError("full", retry_after_s=2), 429),
        (EngineStepError("broke"), 500),
        (RequestTimeoutError("late"), 504),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_completion_failing_before_the_first_token_has_its_own_status(
    client: TestClient, engine: FakeEngine, error: Exception, status: int, stream: bool
) -> None:
    engine.fail = error
    response = client.post(URL, json={"prompt": "a", "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == error.code  # type: ignore[attr-defined]
    assert response.headers.get("retry-after") == ("2" if status == 429 else None)


@pytest.mark.parametrize("error", [EngineStepError("broke"), RuntimeError("secret /path")])
def test_completion_stream_failing_midway_sends_the_error_and_ends(
    client: TestClient, engine: FakeEngine, error: Exception
) -> None:
    engine.fail, engine.fail_after = error, 1
    chunks = events(client)
    assert set(chunks[-1]) == {"error"}
    assert chunks[-1]["error"]["type"] == "server_error"
    assert "secret" not in str(chunks)
    assert chunks[0]["choices"]


def test_completion_refused_halfway_cancels_what_was_submitted(client: TestClient, engine: FakeEngine) -> None:
    engine.refuse, engine.refuse_at = EngineOverloadedError("full"), 2
    assert client.post(URL, json={"prompt": ["a", "b", "c"]}).status_code == 429
    assert [stream.is_cancelled for stream in engine.streams] == [True, True]


def test_completion_one_choice_failing_cancels_the_others(client: TestClient, engine: FakeEngine) -> None:
    engine.fail, engine.fail_after = EngineStepError("broke"), 1
    assert client.post(URL, json={"prompt": ["aaaa", "bbbb"]}).status_code == 500
    assert all(stream.is_cancelled for stream in engine.streams)


def test_completion_that_fails_unforeseen_tells_a_request_id_and_nothing_else(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.fail = RuntimeError("secret /path")
    response = client.post(URL, json={"prompt": "a"}, headers={"x-request-id": "mine-1"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "mine-1"
    assert response.json()["error"]["code"] == "internal_error"
    assert "mine-1" in response.json()["error"]["message"]
    assert "secret" not in response.text


def test_completion_running_too_long_is_a_504_and_cancelled(make_client: Any, engine: FakeEngine) -> None:
    engine.hold_after = 1
    response = make_client(request_timeout_s=0.05).post(URL, json={"prompt": "abc"})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    assert engine.streams[0].is_cancelled


def test_completion_beyond_the_limit_of_concurrent_requests_is_a_429(make_client: Any, engine: FakeEngine) -> None:
    response = make_client(max_concurrent_requests=0).post(URL, json={"prompt": "abc"})
    assert response.status_code == 429
    assert response.json()["error"]["code"] == "engine_overloaded"
    assert int(response.headers["retry-after"]) >= 1


def test_request_id_of_the_client_names_nothing_inside(client: TestClient, engine: FakeEngine) -> None:
    headers = {"x-request-id": "same"}
    responses = [client.post(URL, json={"prompt": "a"}, headers=headers) for _ in range(4)]
    assert [response.headers["x-request-id"] for response in responses] == ["same"] * 4
    assert len({response.json()["id"] for response in responses}) == 4
    assert len({request.request_id for request in engine.submitted}) == 4
    assert int(responses[0].headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize("value", ["a" * 129, "a b", 'x"y'])
def test_request_id_of_the_client_is_replaced_where_it_is_odd(client: TestClient, value: str) -> None:
    chosen = client.get("/health", headers={"x-request-id": value}).headers["x-request-id"]
    assert chosen.startswith("req-")


@pytest.mark.parametrize("url", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_timing_is_told_on_demand(client: TestClient, url: str, stream: bool) -> None:
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "prompt": "a", "n": 2, "max_tokens": 3}
    if stream:
        chunks = [chunk["choices"][0] for chunk in events(client, url, return_timing=True, **body)[:-1]]
        assert all(("timing" in chunk) == (chunk["finish_reason"] is not None) for chunk in chunks)
        choices = [chunk for chunk in chunks if "timing" in chunk]
    else:
        choices = client.post(url, json={**body, "return_timing": True}).json()["choices"]
        assert all("timing" not in choice for choice in client.post(url, json=body).json()["choices"])
    assert len(choices) == 2
    for choice in choices:
        timing = choice["timing"]
        assert 0 <= timing["queue_s"] <= timing["time_to_first_token_s"] <= timing["total_s"]
