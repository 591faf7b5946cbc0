"""OpenAI's own SDK, unmodified, against the real server process: sync, async, streaming, errors."""

from __future__ import annotations

import asyncio
import re

import httpx
import openai
import pydantic
import pytest

from tests.e2e.conftest import MakeFile, Server

PROMPT = "The capital of France is"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def style(http: httpx.Client, make_file: MakeFile) -> str:
    """An uploaded intervention that changes the answers."""
    http.post("/v1/interventions", params={"name": "sdk-style"}, content=make_file(1)).raise_for_status()
    return "sdk-style"


def complete(sdk: openai.OpenAI, **fields: object) -> openai.types.Completion:
    defaults = {"model": "base", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    return sdk.completions.create(**(defaults | fields))  # type: ignore[call-overload, no-any-return]


def test_sdk_completion(sdk: openai.OpenAI) -> None:
    completion = complete(sdk)
    assert "Paris" in completion.choices[0].text
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 12


def test_sdk_chat(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(model="base", messages=QUESTION, max_tokens=32, temperature=0)  # type: ignore[arg-type]
    assert chat.choices[0].message.role == "assistant"
    assert "Paris" in (chat.choices[0].message.content or "")
    assert chat.choices[0].finish_reason == "stop"


def test_sdk_streamed_completion_equals_the_whole_one(sdk: openai.OpenAI) -> None:
    stream = complete(sdk, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == complete(sdk).choices[0].text
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 12


def test_sdk_chat_stream_helper_accumulates_the_answer(sdk: openai.OpenAI) -> None:
    whole = sdk.chat.completions.create(model="base", messages=QUESTION, max_tokens=16, temperature=0)  # type: ignore[arg-type]
    with sdk.chat.completions.stream(model="base", messages=QUESTION, max_tokens=16, temperature=0) as stream:  # type: ignore[arg-type]
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content


def test_sdk_async_requests_run_side_by_side(server: Server, sdk: openai.OpenAI, style: str) -> None:
    expected = {model: complete(sdk, model=model).choices[0].text for model in ("base", style)}

    async def run() -> list[tuple[str, str]]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(index: int) -> tuple[str, str]:
                model = ("base", style)[index % 2]
                if index % 3:
                    whole = await client.completions.create(model=model, prompt=PROMPT, max_tokens=12, temperature=0)
                    return model, whole.choices[0].text
                stream = await client.completions.create(
                    model=model, prompt=PROMPT, max_tokens=12, temperature=0, stream=True
                )
                return model, "".join([chunk.choices[0].text async for chunk in stream])

            return list(await asyncio.gather(*(one(index) for index in range(12))))

    for model, text in asyncio.run(run()):
        assert text == expected[model]


def test_sdk_names_an_intervention_by_model_or_by_field(sdk: openai.OpenAI, style: str) -> None:
    base = complete(sdk).choices[0].text
    by_model = complete(sdk, model=style)
    by_field = complete(sdk, extra_body={"intervention": style})
    switched_off = complete(sdk, extra_body={"intervention": {"name": style, "scale": 0}})
    assert by_model.choices[0].text == by_field.choices[0].text != base
    assert switched_off.choices[0].text == base
    assert by_model.model_extra is not None
    assert [item["name"] for item in by_model.model_extra["intervention"]] == [style]


def test_sdk_lists_and_retrieves_models(sdk: openai.OpenAI, style: str) -> None:
    models = {model.id: model for model in sdk.models.list()}
    assert style in models
    assert sdk.models.retrieve(style).id == style
    with pytest.raises(openai.NotFoundError):
        sdk.models.retrieve("nothing")


def test_sdk_several_prompts_answers_and_logprobs(sdk: openai.OpenAI) -> None:
    completion = complete(sdk, prompt=[PROMPT, "2 + 2 ="], n=2, logprobs=3, max_tokens=4)
    assert [choice.index for choice in completion.choices] == [0, 1, 2, 3]
    assert completion.choices[0].text == completion.choices[1].text != completion.choices[2].text
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == completion.choices[0].text
    for value, top in zip(logprobs.token_logprobs or (), logprobs.top_logprobs or (), strict=True):
        assert value == max(top.values()) <= 0
        assert len(top) == 3


def test_sdk_chat_logprobs(sdk: openai.OpenAI) -> None:
    chat = sdk.chat.completions.create(
        model="base", messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2  # type: ignore[arg-type]
    )  # fmt: skip
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content or []
    assert b"".join(bytes(token.bytes or ()) for token in content).decode() == chat.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 for token in content)


class Capital(pydantic.BaseModel):
    """What an answer is parsed into."""

    city: str
    is_in_europe: bool


def test_sdk_parses_an_answer_of_a_schema(sdk: openai.OpenAI, style: str) -> None:
    """Whatever edits the model, the answer is of the schema."""
    for model in ("base", style):
        chat = sdk.chat.completions.parse(
            model=model, messages=QUESTION, response_format=Capital, max_tokens=128, temperature=0  # type: ignore[arg-type]
        )  # fmt: skip
        assert chat.choices[0].finish_reason == "stop"
        assert isinstance(chat.choices[0].message.parsed, Capital)


@pytest.mark.parametrize(
    ("field", "value", "pattern"),
    [("regex", "[A-Z][a-z]{2,9}!", "[A-Z][a-z]{2,9}!"), ("choice", ["Lyon", "Nice"], "Lyon|Nice")],
)
def test_sdk_answer_of_a_pattern_or_a_choice(sdk: openai.OpenAI, field: str, value: object, pattern: str) -> None:
    completion = complete(sdk, extra_body={"structured_outputs": {field: value}, "return_timing": True})
    assert re.fullmatch(pattern, completion.choices[0].text)
    assert completion.choices[0].finish_reason == "stop"
    timing = completion.choices[0].model_extra["timing"]  # type: ignore[index]
    assert 0 <= timing["queue_s"] < timing["time_to_first_token_s"] <= timing["total_s"]


def test_sdk_stop_string_ends_the_answer(sdk: openai.OpenAI) -> None:
    choice = complete(sdk, stop=["Paris"]).choices[0]
    assert "Paris" not in choice.text
    assert choice.finish_reason == "stop"


def test_sdk_seed_repeats_a_sampled_answer(sdk: openai.OpenAI) -> None:
    texts = [complete(sdk, temperature=1.2, seed=seed).choices[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"temperature": -1}, openai.BadRequestError, "invalid_request"),
        ({"prompt": [5] * 100_00}, openai.BadRequestError, "context_length_exceeded"),
        ({"suffix": "and so on"}, openai.BadRequestError, "unsupported_parameter"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found"),
        ({"extra_body": {"intervention": "nothing"}}, openai.NotFoundError, "intervention_not_found"),
        ({"prompt": "x" * 200_000}, openai.APIStatusError, "payload_too_large"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_sdk_raises_its_typed_errors(
    sdk: openai.OpenAI, fields: dict[str, object], error: type[openai.APIStatusError], code: str, stream: bool
) -> None:
    with pytest.raises(error) as raised:
        complete(sdk, stream=stream, **fields)
    assert raised.value.code == code
    assert raised.value.request_id
