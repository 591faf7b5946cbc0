"""What the tests of both clients and of the command line answer with."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

MakeClient = Callable[..., Any]
Run = Callable[..., tuple[int, str, str]]


COMPLETION = {"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "text": "hi", "finish_reason": "stop"}]}


CHAT = {"id": "c1", "created": 1, "model": "m", "choices": [{"message": {"role": "assistant", "content": "hi"}}]}


EVENTS = {"content-type": "text/event-stream"}


INFO = {
    "name": "haiku",
    "version": 3,
    "content_hash": "sha256:ff",
    "size_bytes": 20_480,
    "created": 0,
    "base_model": "m",
    "formulas": ["loreft"],
    "components": ["block_output"],
    "layers": [1, 2],
    "positions": ["f3+l3"],
    "low_rank_dimension": 4,
    "num_parameters": 12_345,
    "description": "answers in \x1b[31mhaiku",
    "license": "MIT",
    "state": "loaded",
}


def error_response(status: int, code: str = "x", **headers: str) -> httpx.Response:
    error = {"message": "it failed", "type": "t", "param": "p", "code": code}
    return httpx.Response(status, json={"error": error}, headers={"x-request-id": "r1", **headers})


def answering(*outcomes: httpx.Response | Exception | int | dict[str, Any]) -> tuple[Any, list[httpx.Request]]:
    """A handler that gives one outcome after the other (the last for ever; an int is a status), and its requests."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        outcome = outcomes[min(len(requests), len(outcomes)) - 1]
        if isinstance(outcome, int):
            return error_response(outcome)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(200, json=outcome) if isinstance(outcome, dict) else outcome

    return handle, requests


class Server:
    """Answers every request with `answers[path]`, and remembers what was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {}
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self._handle)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return self.answers[request.url.path](request)

    def json(self, path: str, answer: dict[str, Any], status: int = 200, **headers: str) -> None:
        self.answers[path] = lambda _: httpx.Response(status, json=answer, headers=headers)

    def events(self, path: str, *events: dict[str, Any] | str) -> None:
        raw = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
        self.answers[path] = lambda _: httpx.Response(200, content=raw, headers=EVENTS)

    def error(self, path: str, status: int, message: str, code: str, **headers: str) -> None:
        self.json(path, {"error": {"message": message, "type": "t", "param": None, "code": code}}, status, **headers)

    @property
    def sent(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.requests[-1].content)
        return body


def type_in(monkeypatch: pytest.MonkeyPatch, text: str, *, is_terminal: bool) -> None:
    stdin = io.StringIO(text)
    monkeypatch.setattr(stdin, "isatty", lambda: is_terminal)
    monkeypatch.setattr("sys.stdin", stdin)


def text_chunk(text: str) -> dict[str, Any]:
    return {"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "text": text}]}


def chat_chunk(text: str) -> dict[str, Any]:
    return {"id": "c1", "created": 1, "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]}
