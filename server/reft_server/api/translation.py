"""A request on the wire becomes requests to the engine."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from reft_client.types import (
    AppliedIntervention,
    AppliedRoute,
    ChatCompletionRequest,
    CompletionRequest,
    SamplingFields,
)
from reft_server.engine.types import GenerationRequest, SamplingParams
from reft_server.errors import InvalidRequestError, PromptTooLongError, UnsupportedParameterError
from reft_server.tenants import Caller

from .context import ApiContext
from .routed import Shadow, apply
from .tool_calls import ToolParser, tool_parser


@dataclass(frozen=True)
class GenerationPlan:
    """Everything that is decided before the first token.

    Args:
        response_id: unique, whatever request id the client chose.
        model: what the response calls the model.
        requests: one per choice, prompt-major: choice `i * n + j` is answer j to prompt i.
        num_choices_per_prompt: the request's `n`.
        echoes: what each choice starts with: its prompt, or nothing.
        caller: on whose account it runs.
        applied: the interventions, as resolved; the same for every choice.
        tool_parser: makes what finds the calls of one answer; None where none can come.
        route: what chose `applied`; None = the request itself.
        shadow: what to compare the first answer with, once it is given; None = nothing.
    """

    response_id: str
    created: int
    model: str
    requests: tuple[GenerationRequest, ...]
    num_choices_per_prompt: int
    stop_strings: tuple[str, ...]
    echoes: tuple[str, ...]
    applied: tuple[AppliedIntervention, ...]
    caller: Caller
    tool_parser: Callable[[], ToolParser] | None = None
    route: AppliedRoute | None = None
    shadow: Shadow | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Each prompt counted once, however many answers it gets."""
        return sum(len(request.prompt_token_ids) for request in self.requests[:: self.num_choices_per_prompt])


async def plan_completion(context: ApiContext, caller: Caller, body: CompletionRequest) -> GenerationPlan:
    """Tokenize the prompts, resolve the interventions, and fix the sampling of `/v1/completions`.

    Raises:
        ReftError: a field that can't be served; see docs/errors.md.
    """
    _check_supported(context, body, len(body.prompts))
    prompts = [
        await context.tokenization.encode(prompt, param="prompt") if isinstance(prompt, str) else tuple(prompt)
        for prompt in body.prompts
    ]
    max_tokens = body.max_tokens if "max_tokens" in body.model_fields_set else None
    sampling = await _sampling(context, body, body.max_tokens, body.logprobs)
    if body.echo and (body.logprobs is not None or not body.max_tokens):
        sampling = replace(sampling, num_prompt_logprobs=body.logprobs or 0)
    plan = await _plan(context, caller, body, "cmpl", prompts, sampling, is_limit_given=max_tokens is not None)
    if not body.echo:
        return plan
    texts = [prompt if isinstance(prompt, str) else context.tokenization.decode(prompt) for prompt in body.prompts]
    return replace(plan, echoes=tuple(text for text in texts for _ in range(body.n)))


async def plan_chat(context: ApiContext, caller: Caller, body: ChatCompletionRequest) -> GenerationPlan:
    """Render and tokenize the conversation, resolve the interventions, and fix the sampling of a chat request.

    Raises:
        ReftError: a field that can't be served; see docs/errors.md.
    """
    _check_supported(context, body, 1)
    is_calling = body.effective_tool_choice != "none"
    prompt = await context.tokenization.encode_chat(body.messages, body.tools or () if is_calling else ())
    window = context.engine.model_info.max_model_len
    limit = body.max_new_tokens or context.settings.max_chat_tokens or window
    sampling = await _sampling(context, body, limit, (body.top_logprobs or 0) if body.logprobs else None)
    is_limit_given = body.max_new_tokens is not None
    plan = await _plan(context, caller, body, "chatcmpl", [prompt], sampling, is_limit_given=is_limit_given)
    return replace(plan, tool_parser=tool_parser(body, context.tokenization.tool_syntax))


def _check_supported(context: ApiContext, body: SamplingFields, num_prompts: int) -> None:
    unserved = body.unserved_parameters()
    if unserved:
        raise UnsupportedParameterError(f"{unserved[0]} is not served here: leave it out", param=unserved[0])
    vocab_size = context.engine.model_info.vocab_size
    if body.top_k > vocab_size:
        raise InvalidRequestError(f"top_k is {body.top_k}, the vocabulary has {vocab_size} tokens", param="top_k")
    limit = context.settings.max_choices_per_request
    if num_prompts * body.n > limit:
        raise InvalidRequestError(
            f"{num_prompts} prompts times n={body.n} are {num_prompts * body.n} answers, at most {limit} are served",
            param="n" if body.n > 1 else "prompt",
        )


async def _sampling(
    context: ApiContext, body: SamplingFields, max_tokens: int, num_logprobs: int | None
) -> SamplingParams:
    source = body.output_grammar()
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(body.top_k, 0),  # vLLM's -1 is off
        seed=body.seed,
        num_logprobs=num_logprobs,
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        ignore_eos=body.ignore_eos,
        min_p=body.min_p,
        min_tokens=body.min_tokens,
        logit_bias=tuple({int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()}.items()),
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        grammar=None if source is None else await context.grammars.compile(source),
    )


async def _plan(
    context: ApiContext,
    caller: Caller,
    body: SamplingFields,
    prefix: str,
    prompts: Sequence[tuple[int, ...]],
    sampling: SamplingParams,
    *,
    is_limit_given: bool,
) -> GenerationPlan:
    window = context.engine.model_info.max_model_len
    param = "prompt" if isinstance(body, CompletionRequest) else "messages"
    limits = [
        _fit(prompt, sampling.max_tokens, window, param=param, is_limit_given=is_limit_given) for prompt in prompts
    ]
    started_at_s = time.monotonic()
    applied = await apply(context, caller, body, prompts)
    deadline_s = max(context.settings.request_timeout_s - (time.monotonic() - started_at_s), 0.0)
    response_id = f"{prefix}-{uuid.uuid4().hex}"
    requests = tuple(
        GenerationRequest(
            request_id=f"{response_id}-{index * body.n + answer}",
            prompt_token_ids=prompt,
            # the same seed n times would give n times the same answer
            sampling=replace(
                sampling,
                max_tokens=limits[index],
                seed=None if sampling.seed is None else _wrap_seed(sampling.seed + answer),
            ),
            interventions=applied.folded,
            tenant=caller.share(body.user),
            priority=body.priority,
            cache_salt=caller.cache_salt(body.cache_salt, is_shared=context.settings.shares_prefixes),
            deadline_s=deadline_s,
        )
        for index, prompt in enumerate(prompts)
        for answer in range(body.n)
    )
    return GenerationPlan(
        response_id=response_id,
        created=int(time.time()),
        model=body.model or context.model_names.base,
        requests=requests,
        num_choices_per_prompt=body.n,
        stop_strings=body.stop_strings,
        echoes=("",) * len(requests),
        applied=applied.interventions,
        caller=caller,
        route=applied.route,
        shadow=applied.shadow,
    )


def _wrap_seed(seed: int) -> int:
    return (seed + 2**63) % 2**64 - 2**63


def _fit(prompt: tuple[int, ...], max_tokens: int, window: int, *, param: str, is_limit_given: bool) -> int:
    """New tokens for this prompt: as asked, or as many as are left when the limit is only a default."""
    if not prompt:
        raise InvalidRequestError("The prompt is empty: give at least one token", param=param)
    left = window - len(prompt)
    if left < 1 or (is_limit_given and max_tokens > left):
        asked = f" and {max_tokens} new tokens" if is_limit_given else ""
        raise PromptTooLongError(
            f"The prompt has {len(prompt)} tokens{asked}; the context window is {window} tokens",
            param=param if left < 1 else "max_tokens",
        )
    return min(max_tokens, left)
