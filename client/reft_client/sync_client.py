"""The synchronous client: `calls` says what to send, `exchange` what an outcome means; `transports` sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Unpack, overload

import httpx

from . import calls
from .admin import Admin
from .connection import Connection
from .interventions import Interventions
from .options import ChatOptions, CompletionOptions, Messages, Prompt
from .retry import RetryPolicy
from .routes import Routes
from .transports import Stream, Transport
from .types import (
    ChatChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    HealthStatus,
    ModelList,
    VersionInfo,
)

__all__ = ["ReftClient"]


class ReftClient:
    """A client of one server. Use it in a `with` block, or call `close`. Threads may share it.

    Args:
        base_url: None = the environment's `REFT_URL`, else http://127.0.0.1:8000.
        api_key: None = the environment's `REFT_API_KEY`, else none is sent.
        timeout_s: the longest silence accepted while the server works.
        retry: when refused requests (429, 503) and failed connects are tried again.
        transport: replaces the network, for tests.
        sleep: replaces the waiting between attempts, for tests.

    Raises:
        InvalidArgumentError: an argument that can't work.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        connection = Connection.resolve(base_url, api_key, timeout_s)
        self._transport = Transport(connection, retry or RetryPolicy(), transport, sleep)
        self.interventions = Interventions(self._transport)
        self.routes = Routes(self._transport)
        self.admin = Admin(self._transport)

    @property
    def base_url(self) -> str:
        """The server's address, without `/v1`."""
        return self._transport.base_url

    @overload
    def complete(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse: ...
    @overload
    def complete(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> Stream[CompletionChunk]: ...
    def complete(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse | Stream[CompletionChunk]:
        """Continue one or several prompts.

        Raises:
            InvalidArgumentError: an option that is unknown or out of range; nothing was sent.
            APIStatusError: the server refused.
            APIConnectionError: it can't be reached, or fell silent.
        """
        if stream:
            return self._transport.stream(calls.stream_complete(prompt, options))
        return self._transport.send(calls.complete(prompt, options))

    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletionResponse: ...
    @overload
    def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> Stream[ChatChunk]: ...
    def chat(
        self, messages: Messages, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletionResponse | Stream[ChatChunk]:
        """Answer a conversation. Raises what `complete` raises."""
        if stream:
            return self._transport.stream(calls.stream_chat(messages, options))
        return self._transport.send(calls.chat(messages, options))

    def models(self) -> ModelList:
        """The base model, and the interventions that may be named as `model`."""
        return self._transport.send(calls.list_models())

    def health(self) -> HealthStatus:
        """Whether the server's process answers; never retried."""
        return self._transport.send(calls.health())

    def ready(self) -> HealthStatus:
        """Whether the engine takes requests: `ServiceUnavailableError` if not; never retried."""
        return self._transport.send(calls.ready())

    def version(self) -> VersionInfo:
        """The server's version."""
        return self._transport.send(calls.server_version())

    def close(self) -> None:
        """Close every connection; streams that are still open break."""
        self._transport.close()

    def __enter__(self) -> ReftClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
