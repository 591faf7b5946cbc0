"""`POST /v1/chat/completions`: request, response and stream chunk."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StrictBool, model_validator

from .base import Int, ResponseModel
from .interventions import AppliedIntervention
from .messages import ChatMessage
from .routing import AppliedRoute
from .sampling import SamplingFields, Timing, Usage
from .structured import OutputGrammar
from .tools import MAX_TOOLS, NamedToolChoice, Tool, ToolCall, ToolCallDelta, arguments_grammar, calls_grammar

__all__ = [
    "AssistantMessage",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatDelta",
    "ChatLogprobs",
    "TokenLogprob",
    "TopLogprob",
]


_CHAT_UNSERVED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        **SamplingFields.unserved,
        "add_generation_prompt": (True,),
        "audio": (),
        "chat_template": (),
        "chat_template_kwargs": ({},),
        "continue_final_message": (False,),
        "documents": ([],),
        "echo": (False,),
        "function_call": ("none",),
        "functions": ([],),
        "modalities": (["text"],),
        "prediction": (),
        "web_search_options": (),
    }
)


class ChatCompletionRequest(SamplingFields):
    """Answer a conversation, rendered with the base model's own chat template.

    Args:
        max_tokens: OpenAI's older name of `max_completion_tokens`; None = as many as fit.
        top_logprobs: how many of the likeliest tokens to list; needs `logprobs`.
        tools: functions that the answer may call; a list only for templates that know them.
        tool_choice: `none`, `auto` (where there are tools), `required`, or one function by name.
        parallel_tool_calls: several calls in one answer.
    """

    unserved: ClassVar[Mapping[str, tuple[Any, ...]]] = _CHAT_UNSERVED

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    max_tokens: Annotated[Int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[Int, Field(ge=1)] | None = None
    logprobs: StrictBool = False
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: StrictBool = True

    @model_validator(mode="after")
    def _fields_agree(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens contradict each other")
        return self

    @property
    def effective_tool_choice(self) -> Literal["none", "auto", "required"] | NamedToolChoice:
        """`tool_choice` with its default: `auto` where there are tools."""
        if not self.tools and self.tool_choice in (None, "auto"):
            return "none"
        return self.tool_choice or "auto"

    def _grammars(self) -> tuple[OutputGrammar, ...]:
        choice = self.effective_tool_choice
        if choice == "required":
            if not self.tools:
                raise ValueError("tool_choice=required needs tools")
            return (*super()._grammars(), calls_grammar(self.tools, is_parallel=self.parallel_tool_calls))
        if isinstance(choice, NamedToolChoice):
            return (*super()._grammars(), arguments_grammar(self.tools or [], choice.function.name))
        return super()._grammars()

    @property
    def max_new_tokens(self) -> int | None:
        """The limit under either name; None = as many as fit."""
        return self.max_completion_tokens or self.max_tokens


class TopLogprob(ResponseModel):
    """One candidate for a token's place; `bytes` is its UTF-8 form."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class TokenLogprob(TopLogprob):
    """A generated token and the likeliest candidates for its place."""

    top_logprobs: tuple[TopLogprob, ...] = ()


class ChatLogprobs(ResponseModel):
    """One item per generated token."""

    content: tuple[TokenLogprob, ...] | None = None


class AssistantMessage(ResponseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class ChatChoice(ResponseModel):
    """One whole answer."""

    index: int = 0
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    timing: Timing | None = None
    token_ids: tuple[int, ...] | None = None


class ChatCompletionResponse(ResponseModel):
    """The whole answer. `intervention` says what really answered; None = the base model. `route` chose it."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: tuple[ChatChoice, ...]
    usage: Usage | None = None
    intervention: tuple[AppliedIntervention, ...] | None = None
    route: AppliedRoute | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class ChatDelta(ResponseModel):
    """The next piece of an answer; the first one holds the role."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] | None = None


class ChatChunkChoice(ResponseModel):
    """The next piece of one answer."""

    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    timing: Timing | None = None
    token_ids: tuple[int, ...] | None = None


class ChatChunk(ResponseModel):
    """One event of a stream; the last one may hold only `usage`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...] = ()
    usage: Usage | None = None
    intervention: tuple[AppliedIntervention, ...] | None = None
    route: AppliedRoute | None = None
    prompt_token_ids: tuple[int, ...] | None = None
