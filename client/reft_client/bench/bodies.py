"""From a turn to the JSON of its request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .options import BenchOptions
from .plan import Session, Turn

__all__ = ["Exchange", "request_body"]

Exchange = tuple[str, str]
"""An earlier turn of a session: what was asked and what was answered."""


def request_body(options: BenchOptions, session: Session, turn: Turn, history: Sequence[Exchange]) -> dict[str, Any]:
    """The request's fields.

    Args:
        history: the earlier turns. A chat sends them as messages; a completion's prompt begins with them, line by line.
    """
    body: dict[str, Any] = {
        "max_tokens": turn.max_tokens,
        "temperature": options.temperature,
        "stream": True,
    }
    if options.asks_usage:
        body |= {"stream_options": {"include_usage": True}, "return_timing": True}
    if options.model is not None:
        body["model"] = options.model
    if options.ignore_eos:
        body["ignore_eos"] = True
    if session.intervention is not None:
        body[options.via] = session.intervention
    if session.tenant is not None:
        body["user"] = session.tenant
    if options.endpoint == "chat":
        body["messages"] = _messages(turn, history)
    else:
        body["prompt"] = _prompt(turn, history)
    return {**body, **options.extra_body}


def _messages(turn: Turn, history: Sequence[Exchange]) -> list[dict[str, str]]:
    messages = []
    for question, answer in history:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    if isinstance(turn.prompt, str):
        return [*messages, {"role": "user", "content": turn.prompt}]
    return [*messages, *(item.model_dump() for item in turn.prompt if not isinstance(item, int))]


def _prompt(turn: Turn, history: Sequence[Exchange]) -> str | list[int]:
    if isinstance(turn.prompt, str):
        return "".join(f"{question}{answer}\n" for question, answer in history) + turn.prompt
    return [item for item in turn.prompt if isinstance(item, int)]
