"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence

from reft_client.types import ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob
from reft_server.engine.types import TokenOutput

from .tokenization import Tokenization

MIN_LOGPROB = -9999.0
"""JSON has no minus infinity; OpenAI writes this."""


def completion_logprobs(
    tokens: Sequence[TokenOutput], text_offsets: Sequence[int], num_top: int, tokenization: Tokenization
) -> CompletionLogprobs:
    """The parallel lists of `/v1/completions`; the chosen token is always among `top_logprobs`, as at OpenAI.

    A token without a logprob, the first of a prompt, has null in their place.
    """
    texts = [_text(token, tokenization) for token in tokens]
    tops = [
        None
        if token.logprob is None
        else {tokenization.token_text(token_id): _finite(value) for token_id, value in token.top_logprobs}
        | {text: _finite(token.logprob)}
        for token, text in zip(tokens, texts, strict=True)
    ]
    return CompletionLogprobs(
        tokens=tuple(texts),
        token_logprobs=tuple(None if token.logprob is None else _finite(token.logprob) for token in tokens),
        top_logprobs=tuple(tops) if num_top else None,
        text_offset=tuple(text_offsets),
    )


def chat_logprobs(tokens: Sequence[TokenOutput], tokenization: Tokenization) -> ChatLogprobs:
    """The list of `/v1/chat/completions`."""
    return ChatLogprobs(
        content=tuple(
            TokenLogprob(
                token=_text(token, tokenization),
                logprob=_finite(token.logprob),
                bytes=tuple(tokenization.token_bytes(token.token_id or 0)),
                top_logprobs=tuple(
                    TopLogprob(
                        token=tokenization.token_text(token_id),
                        logprob=_finite(value),
                        bytes=tuple(tokenization.token_bytes(token_id)),
                    )
                    for token_id, value in token.top_logprobs
                ),
            )
            for token in tokens
        )
    )


def _text(token: TokenOutput, tokenization: Tokenization) -> str:
    return "" if token.token_id is None else tokenization.token_text(token.token_id)


def _finite(logprob: float | None) -> float:
    return MIN_LOGPROB if logprob is None else max(logprob, MIN_LOGPROB)
