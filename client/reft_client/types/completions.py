"""`POST /v1/completions`: request, response and stream chunk."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, StrictBool, ValidationInfo, field_validator

from .base import Int, ResponseModel, check_text
from .interventions import AppliedIntervention
from .routing import AppliedRoute
from .sampling import SamplingFields, Timing, Usage

__all__ = ["CompletionChoice", "CompletionChunk", "CompletionLogprobs", "CompletionRequest", "CompletionResponse"]

MAX_PROMPTS = 1024


def _is_token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int and item >= 0 for item in value)


def _check_prompt(value: Any) -> Any:
    if isinstance(value, str):
        return check_text(value)
    if _is_token_ids(value):
        return value
    items = value if isinstance(value, list) else []
    if len(items) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts per request, got {len(items)}")
    if items and all(isinstance(item, str) for item in items):
        return [check_text(item) for item in items]
    if items and all(_is_token_ids(item) for item in items):
        return items
    raise ValueError("must be a string, a list of strings, a list of token ids, or a list of lists of token ids")


PromptType = str | list[str] | list[int] | list[list[int]]
PromptArgument = Annotated[PromptType, PlainValidator(_check_prompt, json_schema_input_type=PromptType)]


class CompletionRequest(SamplingFields):
    """Continue one or several prompts.

    Args:
        max_tokens: 0 only with `echo`: the prompt is read and nothing generated.
        logprobs: None = none; 0 = the chosen token's; k = also the k likeliest.
        echo: the prompt comes before the answer; with `logprobs` its tokens too, the first one's being null.
    """

    prompt: PromptArgument
    echo: StrictBool = False
    max_tokens: Annotated[Int, Field(ge=0)] = 16
    logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _nothing_to_generate_needs_echo(cls, value: int, info: ValidationInfo) -> int:
        if value == 0 and not info.data.get("echo"):
            raise ValueError("must be at least 1, or 0 with echo=true")
        return value

    @property
    def prompts(self) -> tuple[str | list[int], ...]:
        """`prompt` in one shape: texts or token ids, in order."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if isinstance(self.prompt[0], int):
            return ([item for item in self.prompt if isinstance(item, int)],)
        return tuple(item for item in self.prompt if not isinstance(item, int))


class CompletionLogprobs(ResponseModel):
    """Parallel lists, one item per token of the text; `text_offset` counts characters from its start."""

    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None
    text_offset: tuple[int, ...] = ()


class CompletionChoice(ResponseModel):
    """One answer, or in a stream its next piece; choice `i * n + j` is answer j to prompt i."""

    index: int = 0
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    timing: Timing | None = None
    token_ids: tuple[int, ...] | None = None
    prompt_token_ids: tuple[int, ...] | None = None


class CompletionResponse(ResponseModel):
    """The whole answer. `intervention` says what really answered; None = the base model. `route` chose it."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    usage: Usage | None = None
    intervention: tuple[AppliedIntervention, ...] | None = None
    route: AppliedRoute | None = None


class CompletionChunk(CompletionResponse):
    """One event of a stream: the same shape, with pieces of text; the last one may hold only `usage`."""
