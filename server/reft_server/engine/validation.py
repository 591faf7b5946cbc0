"""What a request must satisfy before it may join the queue."""

from __future__ import annotations

import math

from reft_interventions.errors import InterventionSourceError
from reft_server.errors import InvalidRequestError, PromptTooLongError

from .kv_memory import KVAllocator
from .types import GenerationRequest, ModelInfo, SamplingParams

MAX_NUM_LOGPROBS = 20


def validate_request(request: GenerationRequest, info: ModelInfo, kv_cache: KVAllocator) -> None:
    """Refuse what can't run.

    Raises:
        InvalidRequestError: an empty prompt, an id out of the vocabulary, a sampling value out of range.
        InterventionSourceError: a set that needs a source has none.
        PromptTooLongError: longer than the context window, or than the whole KV cache.
    """
    prompt, max_tokens = request.prompt_token_ids, request.sampling.max_tokens
    if not prompt:
        raise InvalidRequestError("the prompt is empty; it needs at least one token", param="prompt")
    if min(prompt) < 0 or max(prompt) >= info.vocab_size:
        raise InvalidRequestError(
            f"the prompt holds a token id outside the vocabulary, 0 to {info.vocab_size - 1}", param="prompt"
        )
    if any(one.open_interventions for one in request.interventions):
        raise InterventionSourceError("an intervention of this request needs a source: give one", param="source")
    _validate_sampling(request.sampling, info)
    if len(prompt) + max_tokens > info.max_model_len:
        raise PromptTooLongError(
            f"the context window is {info.max_model_len} tokens, and the request needs {len(prompt) + max_tokens} "
            f"({len(prompt)} in the prompt and max_tokens={max_tokens}); shorten one of them",
            param="max_tokens" if len(prompt) < info.max_model_len else "prompt",
        )
    if not kv_cache.can_ever_fit(len(prompt) + max(max_tokens - 1, 0)):
        raise PromptTooLongError(
            f"{len(prompt) + max_tokens} tokens can't fit the server's KV cache of {kv_cache.budget_bytes} bytes; "
            "shorten the prompt or max_tokens",
            param="max_tokens",
        )


def _validate_sampling(sampling: SamplingParams, info: ModelInfo) -> None:
    logprobs, prompt_logprobs, ids = sampling.num_logprobs, sampling.num_prompt_logprobs, range(info.vocab_size)
    in_vocabulary = f"must be ids of the vocabulary, 0 to {info.vocab_size - 1}"
    checks = (
        ("max_tokens", sampling.max_tokens >= (prompt_logprobs is None), "must be at least 1"),
        ("temperature", math.isfinite(sampling.temperature) and sampling.temperature >= 0, "must be 0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "must be above 0 and at most 1"),
        ("top_k", 0 <= sampling.top_k <= info.vocab_size, f"must be 0 (off) to {info.vocab_size}"),
        ("logprobs", 0 <= (logprobs or 0) <= MAX_NUM_LOGPROBS, f"must be 0 to {MAX_NUM_LOGPROBS}"),
        ("logprobs", 0 <= (prompt_logprobs or 0) <= MAX_NUM_LOGPROBS, f"must be 0 to {MAX_NUM_LOGPROBS}"),
        ("min_p", 0 <= sampling.min_p <= 1, "must be 0 to 1"),
        ("min_tokens", 0 <= sampling.min_tokens <= sampling.max_tokens, "must be 0 to max_tokens"),
        ("presence_penalty", math.isfinite(sampling.presence_penalty), "must be a number"),
        ("frequency_penalty", math.isfinite(sampling.frequency_penalty), "must be a number"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "must be above 0"),
        ("stop_token_ids", all(token_id in ids for token_id in sampling.stop_token_ids), in_vocabulary),
        ("logit_bias", all(token_id in ids for token_id, _ in sampling.logit_bias), in_vocabulary),
        ("logit_bias", all(math.isfinite(bias) for _, bias in sampling.logit_bias), "must be numbers"),
    )
    for param, is_valid, rule in checks:
        if not is_valid:
            raise InvalidRequestError(f"{param} {rule}", param=param)
