"""The fields that completions and chat completions share, and those of OpenAI and vLLM that are not served."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from pydantic import Field, PlainValidator, StrictBool, model_validator

from .base import FiniteFloat, Int, RequestModel, ResponseModel, Text, TokenId, check_text
from .interventions import InterventionArgument, InterventionRef, intervention_refs
from .structured import (
    Choices,
    JsonSchemaArgument,
    OutputGrammar,
    Pattern,
    ResponseFormat,
    StructuredOutputs,
    named_grammar,
)

__all__ = ["PromptTokensDetails", "SamplingFields", "StreamOptions", "Timing", "Usage"]

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LENGTH = 1024
MAX_LOGIT_BIASES = 1024
MAX_REPETITION_PENALTY = 10.0

_COMMON_UNSERVED: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        # OpenAI's
        "best_of": (1,),
        "suffix": ("",),
        # vLLM's
        "add_special_tokens": (True,),
        "allowed_token_ids": ([],),
        "bad_words": ([],),
        "guided_whitespace_pattern": (),
        "include_stop_str_in_output": (False,),
        "length_penalty": (1,),
        "logits_processors": ([],),
        "prompt_embeds": (),
        "prompt_logprobs": (),
        "skip_special_tokens": (True,),
        "truncate_prompt_tokens": (),
        "use_beam_search": (False,),
    }
)


def _check_stop(value: Any) -> Any:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or any(not isinstance(item, str) for item in items):
        raise ValueError("must be a string or a list of strings")
    if len(items) > MAX_STOP_STRINGS:
        raise ValueError(f"at most {MAX_STOP_STRINGS} stop strings, got {len(items)}")
    if any(not item or len(item) > MAX_STOP_STRING_LENGTH for item in items):
        raise ValueError(f"a stop string has 1 to {MAX_STOP_STRING_LENGTH} characters")
    for item in items:
        check_text(item)
    return value


TokenIdKey = Annotated[str, Field(strict=True, pattern=r"^[0-9]{1,9}$")]
LogitBias = Annotated[FiniteFloat, Field(ge=-100, le=100)]
StopArgument = Annotated[str | list[str], PlainValidator(_check_stop, json_schema_input_type=str | list[str])]


class StreamOptions(RequestModel):
    """What a stream holds besides the tokens; `include_usage` adds a last chunk with the counts."""

    include_usage: StrictBool = False


class SamplingFields(RequestModel):
    """How tokens are chosen and when the answer ends. Defaults are OpenAI's; `temperature` 0 is greedy.

    Args:
        model: the base model or an intervention's name; None = the base model.
        top_k: -1 or 0 = off (vLLM's).
        min_p: drop tokens less likely than this share of the likeliest one (vLLM's).
        min_tokens: tokens before which nothing ends the answer (vLLM's).
        logit_bias: token id, as a string, to what is added to its logit.
        presence_penalty: for tokens that the answer holds already; `frequency_penalty` counts how often.
        repetition_penalty: for tokens that prompt or answer hold; 1 = off (vLLM's, from CTRL).
        n: answers per prompt.
        user: whose share of the server the request counts against.
        priority: among the requests of one user, lower first (vLLM's).
        cache_salt: reuse the prefixes of requests with the same salt only (vLLM's).
        intervention: one or several, applied in order; None = the base model.
        task: the route that chooses the interventions instead; the header `X-Reft-Task` says the same.
        routing_key: requests with the same one get the same target of a route; None = `user`, and without that chance.
            The header `X-Reft-Routing-Key` says the same.
        return_token_ids: also return the ids of prompt and answer (vLLM's).
        return_timing: also say how long each answer waited and ran.
        response_format: what the answer may look like, OpenAI's way; `structured_outputs` is vLLM's, `guided_json`,
            `guided_regex`, `guided_choice` and `guided_grammar` its older names. At most one of all.
    """

    unserved: ClassVar[Mapping[str, tuple[Any, ...]]] = _COMMON_UNSERVED
    """Fields that are not served, with the values under which they would change nothing."""

    model: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    temperature: Annotated[FiniteFloat, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[Int, Field(ge=-1)] = 0
    min_p: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    min_tokens: Annotated[Int, Field(ge=0)] = 0
    logit_bias: Annotated[dict[TokenIdKey, LogitBias], Field(max_length=MAX_LOGIT_BIASES)] | None = None
    presence_penalty: Annotated[FiniteFloat, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[FiniteFloat, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[FiniteFloat, Field(gt=0, le=MAX_REPETITION_PENALTY)] = 1.0
    n: Annotated[Int, Field(ge=1, le=16)] = 1
    seed: Annotated[Int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopArgument | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=256)] | None = None
    ignore_eos: StrictBool = False
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    user: Annotated[Text, Field(max_length=512)] | None = None
    priority: Annotated[Int, Field(ge=-1000, le=1000)] = 0
    cache_salt: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    intervention: InterventionArgument = None
    task: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    routing_key: Annotated[Text, Field(min_length=1, max_length=512)] | None = None
    return_token_ids: StrictBool = False
    return_timing: StrictBool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: JsonSchemaArgument | None = None
    guided_regex: Pattern | None = None
    guided_choice: Choices | None = None
    guided_grammar: Pattern | None = None

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self

    @model_validator(mode="after")
    def _one_grammar(self) -> SamplingFields:
        grammars = self._grammars()
        if len(grammars) > 1:
            raise ValueError(f"{' and '.join(one.param for one in grammars)} contradict each other: give one")
        return self

    def _grammars(self) -> tuple[OutputGrammar, ...]:
        """What each field that asks for a form says."""
        found = (
            None if self.response_format is None else self.response_format.grammar(),
            None if self.structured_outputs is None else self.structured_outputs.to_grammar(),
            named_grammar("guided_json", schema=self.guided_json),
            named_grammar("guided_regex", regex=self.guided_regex),
            named_grammar("guided_choice", choice=self.guided_choice),
            named_grammar("guided_grammar", grammar=self.guided_grammar),
        )
        return tuple(one for one in found if one is not None)

    def output_grammar(self) -> OutputGrammar | None:
        """What the answer may look like; None = any text."""
        return next(iter(self._grammars()), None)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` in one shape."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def includes_usage(self) -> bool:
        """The stream ends with a chunk of counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def intervention_refs(self) -> tuple[InterventionRef, ...]:
        """`intervention` in one shape, in order."""
        return intervention_refs(self.intervention)

    def unserved_parameters(self) -> tuple[str, ...]:
        """Names of the fields in this request that are not served and ask for something."""
        extra = self.model_extra or {}
        return tuple(name for name, neutral in self.unserved.items() if name in extra and extra[name] not in neutral)


class Timing(ResponseModel):
    """Of one answer, in seconds since the engine got it: until it first ran, until its first token, until its end."""

    queue_s: float
    time_to_first_token_s: float
    total_s: float


class PromptTokensDetails(ResponseModel):
    """How much of the prompt came from the prefix cache."""

    cached_tokens: int = 0


class Usage(ResponseModel):
    """Token counts of one request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
