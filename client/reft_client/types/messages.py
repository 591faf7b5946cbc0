"""A turn of a conversation: what was said, what was called, and what came of it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, ValidationInfo, model_validator

from .base import RequestModel, Text, check_text
from .tools import MAX_CALLS, ToolCall

__all__ = ["ChatMessage"]


def _check_content(value: Any, info: ValidationInfo) -> Any:
    if value is None and info.data.get("tool_calls"):
        return None
    if value is None:
        raise ValueError("is required")
    if isinstance(value, str):
        return check_text(value)
    if not isinstance(value, list) or any(not isinstance(part, dict) for part in value):
        raise ValueError('must be a string or a list of {"type": "text", "text": ...} parts')
    for part in value:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('only {"type": "text", "text": ...} parts are served')
        check_text(part["text"])
    return value


ContentType = str | list[dict[str, Any]] | None
ContentArgument = Annotated[ContentType, PlainValidator(_check_content, json_schema_input_type=ContentType)]


class ChatMessage(RequestModel):
    """One turn. Unknown fields (`name`, `refusal`, what an SDK echoes back) are kept.

    Args:
        content: may be missing only beside `tool_calls`.
        tool_calls: of an assistant's turn.
        tool_call_id: of a tool's turn: the call that this is the result of.
    """

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_CALLS)] | None = None
    tool_call_id: Text | None = None
    content: ContentArgument = Field(None, validate_default=True)

    @model_validator(mode="after")
    def _fields_fit_the_role(self) -> ChatMessage:
        for name in ("function_call", "audio"):
            if (self.model_extra or {}).get(name):
                raise ValueError(f"{name} is not served")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant's turn has tool_calls")
        return self

    @property
    def is_about_tools(self) -> bool:
        """Only templates that know tools can render this turn."""
        return self.role == "tool" or bool(self.tool_calls)

    @property
    def text(self) -> str:
        """The content as one string; parts are joined by a newline, as vLLM does."""
        if self.content is None:
            return ""
        return self.content if isinstance(self.content, str) else "\n".join(part["text"] for part in self.content)
