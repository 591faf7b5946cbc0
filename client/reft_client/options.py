"""The keyword arguments of generation, typed once for both clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from .types import ChatMessage, InterventionRef, StreamOptions

__all__ = ["ChatOptions", "CompletionOptions", "GenerationOptions", "Intervention", "Messages", "Prompt"]

Prompt = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""A text, several texts, token ids, or several lists of token ids."""

Messages = str | Sequence[ChatMessage | Mapping[str, object]]
"""A conversation; a plain string is one user turn."""

Intervention = str | InterventionRef | Mapping[str, object] | Sequence[str | InterventionRef | Mapping[str, object]]
"""`"name"`, `"name@3"`, `{"name": ..., "scale": ..., "subspaces": ..., "source": ...}`, or a list, applied in order."""


class GenerationOptions(TypedDict, total=False):
    """What completions and chat share; `SamplingFields` has the defaults and bounds.

    `extra_body` goes into the request as it is; `timeout_s` is the longest silence accepted from the server.
    """

    model: str | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    min_tokens: int | None
    logit_bias: Mapping[str, float] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    repetition_penalty: float | None
    n: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    user: str | None
    priority: int
    cache_salt: str | None
    intervention: Intervention | None
    task: str | None
    routing_key: str | None
    return_token_ids: bool
    stream_options: StreamOptions | Mapping[str, object] | None
    extra_body: Mapping[str, object]
    timeout_s: float


class CompletionOptions(GenerationOptions, total=False):
    """`complete`'s keyword arguments."""

    max_tokens: int | None
    logprobs: int | None
    echo: bool


class ChatOptions(GenerationOptions, total=False):
    """`chat`'s keyword arguments."""

    max_tokens: int | None
    max_completion_tokens: int | None
    logprobs: bool
    top_logprobs: int | None
