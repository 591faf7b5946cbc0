"""Pieces of answers become responses: `CompletionOutput` and `ChatOutput` write the two wire formats.

Models are dumped with `exclude_unset`: what is set is sent, nulls too, because OpenAI's SDK expects
`finish_reason` and `logprobs` in every chunk; extensions are set only where they were asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_core import to_json

from reft_client.types import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatDelta,
    ChatLogprobs,
    CompletionChoice,
    CompletionChunk,
    CompletionLogprobs,
    CompletionRequest,
    CompletionResponse,
    FunctionCall,
    FunctionCallDelta,
    PromptTokensDetails,
    SamplingFields,
    ToolCall,
    ToolCallDelta,
    Usage,
)

from .generation import Answer, Delta
from .logprobs import chat_logprobs, completion_logprobs
from .tokenization import Tokenization
from .tool_calls import CallPiece
from .translation import GenerationPlan

_MARK = "\0"  # stands for a text; what comes after the text in an event holds none


class Output(ABC):
    """Writes the answers of one request."""

    def __init__(self, plan: GenerationPlan, body: SamplingFields, tokenization: Tokenization) -> None:
        self._plan = plan
        self._body = body
        self._tokenization = tokenization
        self._num_completion_tokens = 0
        self._num_cached_tokens = 0
        self._started: set[int] = set()
        self._around_text: dict[int, tuple[str, str]] = {}

    @property
    @abstractmethod
    def has_logprobs(self) -> bool:
        """The request asks for logprobs."""

    @abstractmethod
    def _chunk(self, delta: Delta, *, is_first: bool) -> BaseModel: ...

    @abstractmethod
    def _empty_chunk(self, **fields: Any) -> BaseModel: ...

    @abstractmethod
    def _response(self, answers: Sequence[Answer]) -> BaseModel: ...

    def chunk(self, delta: Delta) -> str | None:
        """The event of a piece; None where there is nothing to tell (text held back, no logprobs)."""
        self._num_completion_tokens += len(delta.token_ids)
        self._count_cached(delta.index, delta.num_cached_tokens)
        is_silent = not (
            delta.text or delta.calls or delta.finish_reason or self.has_logprobs or self._body.return_token_ids
        )
        if is_silent:
            return None
        is_first = delta.index not in self._started
        self._started.add(delta.index)
        has_more = delta.calls or delta.finish_reason or self.has_logprobs or self._body.return_token_ids
        if is_first or has_more:
            return self._chunk(delta, is_first=is_first).model_dump_json(exclude_unset=True)
        return self._text_chunk(delta)

    def _text_chunk(self, delta: Delta) -> str:
        """The event of a piece that is nothing but text: all of them are the same around it."""
        if delta.index not in self._around_text:
            event = self._chunk(Delta(delta.index, _MARK, (), (), (), None), is_first=False)
            before, _, after = event.model_dump_json(exclude_unset=True).rpartition(to_json(_MARK).decode())
            self._around_text[delta.index] = before, after
        before, after = self._around_text[delta.index]
        return before + to_json(delta.text).decode() + after

    def usage_chunk(self) -> str:
        """The event after the last piece, with the counts and no choices."""
        return self._empty_chunk(choices=(), usage=self._usage()).model_dump_json(exclude_unset=True)

    def response(self, answers: Sequence[Answer]) -> str:
        """The whole response."""
        self._num_completion_tokens = sum(len(answer.token_ids) for answer in answers)
        for index, answer in enumerate(answers):
            self._count_cached(index, answer.num_cached_tokens)
        return self._response(answers).model_dump_json(exclude_unset=True)

    def _head(self, *, is_first: bool = True) -> dict[str, Any]:
        head: dict[str, Any] = {"id": self._plan.response_id, "created": self._plan.created, "model": self._plan.model}
        if is_first and self._plan.applied:
            head["intervention"] = self._plan.applied
        if is_first and self._plan.route is not None:
            head["route"] = self._plan.route
        if self._body.includes_usage:
            head["usage"] = None
        return head

    def _token_ids(self, token_ids: Sequence[int]) -> dict[str, Any]:
        return {"token_ids": tuple(token_ids)} if self._body.return_token_ids else {}

    def _timing(self, piece: Delta | Answer) -> dict[str, Any]:
        return {"timing": piece.timing} if self._body.return_timing and piece.timing is not None else {}

    def _prompt_token_ids(self, index: int) -> dict[str, Any]:
        ids = self._plan.requests[index].prompt_token_ids
        return {"prompt_token_ids": ids} if self._body.return_token_ids else {}

    def _usage(self) -> Usage:
        num_prompt, num_completion = self._plan.num_prompt_tokens, self._num_completion_tokens
        return Usage(
            prompt_tokens=num_prompt,
            completion_tokens=num_completion,
            total_tokens=num_prompt + num_completion,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=self._num_cached_tokens),
        )

    def _count_cached(self, index: int, num_tokens: int) -> None:
        """Each prompt once, as `prompt_tokens` does: the first answer to it tells what was cached before it came."""
        if index % self._plan.num_choices_per_prompt == 0:
            self._num_cached_tokens += num_tokens


class CompletionOutput(Output):
    """`/v1/completions`."""

    def __init__(self, plan: GenerationPlan, body: CompletionRequest, tokenization: Tokenization) -> None:
        super().__init__(plan, body, tokenization)
        self._num_top = body.logprobs

    @property
    def has_logprobs(self) -> bool:
        return self._num_top is not None

    def _logprobs(self, piece: Delta | Answer) -> CompletionLogprobs | None:
        from_piece = (piece.tokens, piece.text_offsets)
        return None if self._num_top is None else completion_logprobs(*from_piece, self._num_top, self._tokenization)

    def _choice(self, index: int, piece: Delta | Answer, *, is_first: bool) -> CompletionChoice:
        return CompletionChoice(
            index=index,
            text=piece.text,
            logprobs=self._logprobs(piece),
            finish_reason=piece.finish_reason,
            **self._token_ids(piece.token_ids),
            **self._timing(piece),
            **(self._prompt_token_ids(index) if is_first else {}),
        )

    def _chunk(self, delta: Delta, *, is_first: bool) -> CompletionChunk:
        choice = self._choice(delta.index, delta, is_first=is_first)
        return CompletionChunk(object="text_completion", choices=(choice,), **self._head(is_first=is_first))

    def _empty_chunk(self, **fields: Any) -> CompletionChunk:
        return CompletionChunk(object="text_completion", **(self._head(is_first=False) | fields))

    def _response(self, answers: Sequence[Answer]) -> CompletionResponse:
        choices = tuple(self._choice(index, answer, is_first=True) for index, answer in enumerate(answers))
        return CompletionResponse(
            object="text_completion", choices=choices, **(self._head() | {"usage": self._usage()})
        )


class ChatOutput(Output):
    """`/v1/chat/completions`."""

    def __init__(self, plan: GenerationPlan, body: ChatCompletionRequest, tokenization: Tokenization) -> None:
        super().__init__(plan, body, tokenization)
        self._has_logprobs = body.logprobs

    @property
    def has_logprobs(self) -> bool:
        return self._has_logprobs

    def _logprobs(self, piece: Delta | Answer) -> ChatLogprobs | None:
        return chat_logprobs(piece.tokens, self._tokenization) if self._has_logprobs else None

    def _chunk(self, delta: Delta, *, is_first: bool) -> ChatChunk:
        fields: dict[str, Any] = {"role": "assistant"} if is_first else {}
        if delta.text or not delta.calls:
            fields["content"] = delta.text
        if delta.calls:
            fields["tool_calls"] = tuple(_call_delta(piece) for piece in delta.calls)
        message = ChatDelta(**fields)
        choice = ChatChunkChoice(
            index=delta.index,
            delta=message,
            logprobs=self._logprobs(delta),
            finish_reason=delta.finish_reason,
            **self._token_ids(delta.token_ids),
            **self._timing(delta),
        )
        extra = self._prompt_token_ids(delta.index) if is_first else {}
        return ChatChunk(object="chat.completion.chunk", choices=(choice,), **(self._head(is_first=is_first) | extra))

    def _empty_chunk(self, **fields: Any) -> ChatChunk:
        return ChatChunk(object="chat.completion.chunk", **(self._head(is_first=False) | fields))

    def _response(self, answers: Sequence[Answer]) -> ChatCompletionResponse:
        choices = tuple(
            ChatChoice(
                index=index,
                message=_message(answer),
                logprobs=self._logprobs(answer),
                finish_reason=answer.finish_reason,
                **self._token_ids(answer.token_ids),
                **self._timing(answer),
            )
            for index, answer in enumerate(answers)
        )
        fields = self._head() | {"usage": self._usage()} | self._prompt_token_ids(0)
        return ChatCompletionResponse(object="chat.completion", choices=choices, **fields)


def _message(answer: Answer) -> AssistantMessage:
    if not answer.calls:
        return AssistantMessage(role="assistant", content=answer.text)
    calls = tuple(
        ToolCall(
            id=call.call_id or "",
            type="function",
            function=FunctionCall(name=call.name or "", arguments=call.arguments),
        )
        for call in answer.calls
    )
    return AssistantMessage(role="assistant", content=answer.text or None, tool_calls=calls)


def _call_delta(piece: CallPiece) -> ToolCallDelta:
    if piece.name is None:
        return ToolCallDelta(index=piece.index, function=FunctionCallDelta(arguments=piece.arguments))
    function = FunctionCallDelta(name=piece.name, arguments=piece.arguments)
    return ToolCallDelta(index=piece.index, id=piece.call_id, type="function", function=function)
