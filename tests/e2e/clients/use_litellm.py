"""litellm, unmodified: whole, streamed and asynchronous answers. Arguments: base URL, model. Writes one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

URL, MODEL = sys.argv[1:]
OPTIONS: dict[str, Any] = {
    "api_base": URL, "api_key": "none", "max_retries": 0, "max_tokens": 12, "temperature": 0,
}  # fmt: skip
CHAT: dict[str, Any] = {**OPTIONS, "messages": [{"role": "user", "content": "What is the capital of France?"}]}


def joined(chunks: Any) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def asynchronous() -> list[str]:
    whole = await litellm.acompletion(model=f"openai/{MODEL}", **CHAT)
    stream = await litellm.acompletion(model=f"openai/{MODEL}", stream=True, **CHAT)
    return [whole.choices[0].message.content, joined([chunk async for chunk in stream])]


def main() -> None:
    whole = litellm.completion(model=f"openai/{MODEL}", **CHAT)
    stream = litellm.completion(model=f"openai/{MODEL}", stream=True, stream_options={"include_usage": True}, **CHAT)
    chunks = list(stream)
    text = litellm.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", logprobs=2, **OPTIONS
    )
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"enum": ["Paris", "Rome"]}}}
    bound = litellm.completion(model=f"openai/{MODEL}", response_format=form, **CHAT)
    try:
        litellm.completion(model="openai/nothing", **CHAT)
    except litellm.NotFoundError as error:
        refusal = type(error).__name__
    found = {
        "chat": [whole.choices[0].message.content, joined(chunks), *asyncio.run(asynchronous())],
        "reason": whole.choices[0].finish_reason,
        "tokens": [whole.usage.completion_tokens, litellm.stream_chunk_builder(chunks).usage.completion_tokens],
        "text": text.choices[0].text,
        "bound": bound.choices[0].message.content,
        "refusal": refusal,
    }
    sys.stdout.write(json.dumps(found) + "\n")


main()
