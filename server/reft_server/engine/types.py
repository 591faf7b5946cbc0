"""What goes into the engine and what comes out: token ids, sampling, folded interventions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from reft_interventions.components import NO_ROW_SIZES, RowSizes
from reft_interventions.folded import FoldedSet
from reft_server.errors import ReftError

from .capture import RowCapture

FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class ModelInfo:
    """The resident base model, as the API and the validation of uploads need it."""

    model_id: str
    fingerprint: str
    hidden_size: int
    num_layers: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: frozenset[int]
    dtype: str
    device: str
    row_sizes: RowSizes = NO_ROW_SIZES


class TokenMatcher(Protocol):
    """Follows one answer through its grammar, token by token."""

    @property
    def is_complete(self) -> bool:
        """The answer is whole, and nothing can follow but its end."""

    @property
    def error(self) -> ReftError | None:
        """Why the grammar can't be followed any further."""

    def allowed(self) -> NDArray[np.bool_]:
        """`[vocab_size]`: which tokens may come next; EOS where the answer may end here."""

    def accept(self, token_id: int) -> None:
        """Go on by one token."""


class Grammar(Protocol):
    """What an answer may be, compiled."""

    def matcher(self) -> TokenMatcher:
        """A fresh one, at the beginning of an answer; cheap, and safe from any thread."""


@dataclass(frozen=True)
class SamplingParams:
    """How one request's tokens are chosen. `temperature` 0 is greedy.

    Args:
        max_tokens: 0 only with `num_prompt_logprobs`: the prompt is scored and nothing is generated.
        top_k: keep the k likeliest tokens; 0 = all.
        top_p: keep the smallest set of tokens whose probability reaches this, in (0, 1].
        seed: None draws one.
        num_logprobs: None = no logprobs; 0 = the chosen token's; n = also the n likeliest. Taken from the raw
            distribution, before temperature and truncation.
        num_prompt_logprobs: the same for the prompt's own tokens; nothing of the prompt is then taken from a cache.
        stop_token_ids: end the sequence; the token itself is reported with `is_stop_token`.
        ignore_eos: the model's own EOS ids don't end the sequence.
        min_p: drop tokens whose probability is below this share of the likeliest one's; before `top_k` and `top_p`.
        min_tokens: tokens before which neither EOS nor a stop token can be chosen.
        logit_bias: (token id, what is added to its logit).
        presence_penalty: subtracted from the logits of tokens that were generated already.
        frequency_penalty: the same, as often as they were generated.
        grammar: what the answer may be; None = anything. An answer that is complete ends, `min_tokens` or not.
        repetition_penalty: divides positive logits of tokens in the prompt or the answer, multiplies negative ones.
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    min_p: float = 0.0
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    grammar: Grammar | None = None

    @property
    def has_penalties(self) -> bool:
        """What was said before changes what comes next."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt to continue.

    Args:
        interventions: apply in order, already scaled (`FoldedSet.scaled`).
        tenant: whose share of the engine this request counts against.
        priority: among the requests of one tenant, lower first; a level is worth ten seconds of waiting.
        cache_salt: requests reuse the prefixes of requests with the same salt only.
        deadline_s: after its submission, when it ends with `RequestTimeoutError` wherever it is; None = never.
        captures: rows to note of the prompt. Such a request ends with its prompt: nothing is generated.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    interventions: tuple[FoldedSet, ...] = ()
    tenant: str = ""
    priority: int = 0
    cache_salt: str = ""
    deadline_s: float | None = None
    captures: tuple[RowCapture, ...] = ()


class TokenOutput(NamedTuple):
    """One generated token, or the end of the sequence.

    `token_id` is None only in a last event that carries no token (cancelled, error, the end of a capture).
    `is_stop_token` marks an EOS or stop token: counted, but not part of the text.
    `num_cached_tokens`: prompt tokens whose K and V were reused; in a request's first token only.
    `queue_time_s`: between the submission and the first step; in the first output.
    `prompt_tokens`: the prompt's tokens with their logprobs, where they were asked for; in a request's first output.
    The first of them has no logprob.
    """

    token_id: int | None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    finish_reason: FinishReason | None = None
    is_stop_token: bool = False
    error: ReftError | None = None
    num_cached_tokens: int = 0
    queue_time_s: float = 0.0
    prompt_tokens: tuple[TokenOutput, ...] = ()


@dataclass(frozen=True)
class SelfTestSite:
    """What a trial forward showed at one site."""

    layer: int
    component: str
    num_edited_rows: int
    delta_norm: float
    residual_norm: float


@dataclass(frozen=True)
class SelfTestReport:
    """The outcome of a trial forward: every edited row changed, every other row the same bit for bit."""

    sites: tuple[SelfTestSite, ...]
    duration_s: float


@dataclass(frozen=True)
class EngineStats:
    """Counters since start, and gauges now."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    kv_cache_usage: float = 0.0
    prefix_cache_bytes: int = 0
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    num_steps: int = 0
    num_restarts: int = 0
    num_preemptions: int = 0
    num_prefix_queried_tokens: int = 0
    num_prefix_hit_tokens: int = 0
    num_prefix_evictions: int = 0


class TokenStream(Protocol):
    """The outputs of one request. Iterating raises the request's `ReftError` if it fails."""

    def __aiter__(self) -> AsyncIterator[list[TokenOutput]]:
        """Yield the tokens of each step; the last output of the last list has a `finish_reason`."""
        ...

    def cancel(self) -> None:
        """Give up: the sequence leaves the batch at the next step. Safe to call twice, and after the end."""
        ...

    def fail(self, error: ReftError) -> None:
        """Give up, and end the iteration with an error behind what has come so far; called on the event loop."""
        ...


class Engine(Protocol):
    """Token ids in, token ids out. Called from one asyncio event loop; runs in a thread of its own."""

    @property
    def model_info(self) -> ModelInfo: ...

    @property
    def is_ready(self) -> bool:
        """The engine's thread is alive and takes requests."""
        ...

    @property
    def is_broken(self) -> bool:
        """It tries in vain to run its model: only another process may help, where a device has failed."""
        ...

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request.

        Raises:
            InvalidRequestError: an id out of the vocabulary, an empty prompt, a sampling value out of range.
            PromptTooLongError: it can never fit.
            EngineOverloadedError: the queue is full.
            EngineDeadError: the engine is not running.
        """
        ...

    async def self_test(self, folded: FoldedSet) -> SelfTestReport:
        """Try a set in a short forward pass between two steps.

        Raises:
            InterventionSelfTestError: a row that should change does not, or one that must not does.
        """
        ...

    def stats(self) -> EngineStats: ...

    def start(self) -> None: ...

    async def stop(self) -> None:
        """Fail what is waiting and running with `EngineDeadError`, and join the thread."""
        ...
