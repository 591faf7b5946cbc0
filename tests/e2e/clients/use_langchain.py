"""LangChain's ChatOpenAI, unmodified. Arguments: base URL, model. Writes one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

URL, MODEL = sys.argv[1:]
OPTIONS: dict[str, Any] = {"base_url": URL, "api_key": "none", "model": MODEL, "temperature": 0, "max_retries": 0}
MESSAGES = [SystemMessage("Answer shortly."), HumanMessage("What is the capital of France?")]


class City(BaseModel):
    """A city of a country."""

    name: str
    is_capital: bool


async def asynchronous(chat: ChatOpenAI) -> list[str]:
    whole = await chat.ainvoke(MESSAGES)
    pieces = [piece.text async for piece in chat.astream(MESSAGES)]
    return [whole.text, "".join(pieces)]


def main() -> None:
    chat = ChatOpenAI(**OPTIONS, max_tokens=12, stream_usage=True)
    whole = chat.invoke(MESSAGES)
    pieces = list(chat.stream(MESSAGES))
    several = chat.batch([MESSAGES, [HumanMessage("Name a river.")]])
    city = ChatOpenAI(**OPTIONS, max_tokens=120).with_structured_output(City, method="json_schema").invoke(MESSAGES)
    assert isinstance(city, City)
    found = {
        "chat": [
            whole.text,
            "".join(piece.text for piece in pieces),
            several[0].text,
            *asyncio.run(asynchronous(chat)),
        ],
        "tokens": [
            (whole.usage_metadata or {})["output_tokens"],
            sum((piece.usage_metadata or {}).get("output_tokens", 0) for piece in pieces),
        ],
        "reason": whole.response_metadata["finish_reason"],
        "city": city.model_dump(),
        "text": OpenAI(**OPTIONS, max_tokens=12).invoke("The capital of France is"),
    }
    sys.stdout.write(json.dumps(found) + "\n")


main()
