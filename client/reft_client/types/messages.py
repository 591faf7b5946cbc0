"""A turn of a conversation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import PlainValidator, model_validator

from .base import RequestModel, check_text

__all__ = ["ChatMessage"]


def _check_content(value: Any) -> Any:
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list) or any(not isinstance(part, dict) for part in value):
        raise ValueError('must be a string or a list of {"type": "text", "text": ...} parts')
    for part in value:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('only {"type": "text", "text": ...} parts are served')
        check_text(part["text"])
    return value


ContentType = str | list[dict[str, Any]]
ContentArgument = Annotated[ContentType, PlainValidator(_check_content, json_schema_input_type=ContentType)]


class ChatMessage(RequestModel):
    """One turn. Unknown fields (`name`, `refusal`, what an SDK echoes back) are kept; tool calls are refused."""

    role: Literal["system", "developer", "user", "assistant"]
    content: ContentArgument

    @model_validator(mode="after")
    def _no_tool_calls(self) -> ChatMessage:
        for name in ("tool_calls", "function_call", "audio"):
            if (self.model_extra or {}).get(name):
                raise ValueError(f"{name} is not served")
        return self

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by a newline, as vLLM does."""
        return self.content if isinstance(self.content, str) else "\n".join(part["text"] for part in self.content)
