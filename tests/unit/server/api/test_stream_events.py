"""Events of a stream, most of which are put together as text: byte for byte what the wire types would write."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from reft_client.types import ChatChunk, CompletionChunk
from tests.fakes.engine import FakeEngine

TEXT = 'He said: "\\u0000 is \\ no\tletter"\n\x00\x7f \u2028 東京 🙂 </s> \\"\\'


CASES: list[tuple[str, dict[str, Any]]] = [
    (path, options)
    for path in ("completions", "chat/completions")
    for options in ({}, {"stream_options": {"include_usage": True}}, {"n": 2})
] + [("completions", {"echo": True})]


@pytest.mark.parametrize(("path", "options"), CASES)
def test_events_are_what_the_wire_types_write(
    client: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, path: str, options: dict[str, Any]
) -> None:
    is_chat = path != "completions"
    ids: list[int] = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    engine.script = lambda _: ids
    chunk_type: type[BaseModel] = ChatChunk if is_chat else CompletionChunk
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]} if is_chat else {"prompt": "a"}
    with client.stream("POST", f"/v1/{path}", json={"max_tokens": 200, "stream": True, **prompt, **options}) as answer:
        events = answer.read().decode().removesuffix("\n\n").split("\n\n")
    assert events.pop() == "data: [DONE]"
    texts: dict[int, str] = {}
    for event in events:
        chunk: Any = chunk_type.model_validate_json(event.removeprefix("data: "))
        assert event == f"data: {chunk.model_dump_json(exclude_unset=True)}"
        for choice in chunk.choices:
            piece = choice.delta.content if is_chat else choice.text
            texts[choice.index] = texts.get(choice.index, "") + (piece or "")
    whole = ("a" if "echo" in options else "") + TEXT
    assert texts == dict.fromkeys(range(options.get("n", 1)), whole)
