"""One sentence for every error: what is wrong and what to do."""

from __future__ import annotations

from ..errors import (
    APITimeoutError,
    AuthenticationError,
    InternalServerError,
    NotFoundError,
    RateLimitError,
    ReftClientError,
    ServerUnreachableError,
    ServiceUnavailableError,
)

__all__ = ["describe"]


def describe(error: ReftClientError) -> str:
    """The error's message, and the next thing to try where there is one."""
    advice = _advice(error)
    message = f"{error.message.rstrip('.')}; {advice}" if advice else error.message
    if isinstance(error, InternalServerError) and error.request_id:
        message += f" (request id {error.request_id})"
    return message


def _advice(error: ReftClientError) -> str | None:
    if isinstance(error, ServerUnreachableError):
        return "start the server with `make serve`, or say where it runs with --url or REFT_URL"
    if isinstance(error, APITimeoutError):
        return "wait longer with --timeout, or see whether `reft health` answers"
    if isinstance(error, AuthenticationError):
        return "put your key into REFT_API_KEY"
    if isinstance(error, NotFoundError) and "intervention" in (error.code or ""):
        return "`reft interventions list` shows what there is"
    if isinstance(error, RateLimitError | ServiceUnavailableError):
        return "try again in a moment"
    return None
