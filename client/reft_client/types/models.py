"""Models, health, version, and the tokenizer's routes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from .base import RequestModel, ResponseModel, Text, TokenId
from .messages import ChatMessage
from .tools import MAX_TOOLS, Tool

__all__ = [
    "DetokenizeRequest",
    "DetokenizeResponse",
    "HealthStatus",
    "ModelCard",
    "ModelList",
    "TokenizeRequest",
    "TokenizeResponse",
    "VersionInfo",
]


class ModelCard(ResponseModel):
    """The base model, or an intervention that may be named as `model`: `root` is then the base model.

    `parent` is the base model's id for an intervention, None for the base model.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "reft-serve"
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class ModelList(ResponseModel):
    """What the caller may name as `model`."""

    object: Literal["list"] = "list"
    data: tuple[ModelCard, ...] = ()


class HealthStatus(ResponseModel):
    """The answer of `/health` and `/ready`."""

    status: str


class VersionInfo(ResponseModel):
    """The answer of `/version`."""

    version: str


class TokenizeRequest(RequestModel):
    """Turn a prompt, or messages through the chat template, into token ids."""

    model: Text | None = None
    prompt: Text | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    add_special_tokens: StrictBool = True

    @model_validator(mode="after")
    def _one_input(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class TokenizeResponse(ResponseModel):
    """Token ids, their number, and the longest sequence that the model takes."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]


class DetokenizeRequest(RequestModel):
    """Turn token ids into text."""

    model: Text | None = None
    tokens: list[TokenId]


class DetokenizeResponse(ResponseModel):
    """The text."""

    prompt: str
