"""The asynchronous client: `sync_client` with `await`; the same names, arguments, answers and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Literal, Unpack, overload

import httpx

from . import calls
from .admin import AsyncAdmin
from .async_interventions import AsyncInterventions
from .connection import Connection
from .options import ChatOptions, CompletionOptions, Messages, Prompt
from .retry import RetryPolicy
from .routes import AsyncRoutes
from .transports import AsyncStream, AsyncTransport
from .types import (
    ChatChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    HealthStatus,
    ModelList,
    VersionInfo,
)

__all__ = ["AsyncReftClient"]


class AsyncReftClient:
    """A client of one server for asyncio; arguments as in `ReftClient`.

    Use it in an `async with` block, or await `close`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        connection = Connection.resolve(base_url, api_key, timeout_s)
        self._transport = AsyncTransport(connection, retry or RetryPolicy(), transport, sleep)
        self.interventions = AsyncInterventions(self._transport)
        self.routes = AsyncRoutes(self._transport)
        self.admin = AsyncAdmin(self._transport)

    @property
    def base_url(self) -> str:
        """The server's address, without `/v1`."""
        return self._transport.base_url

    @overload
    async def complete(
        self, prompt: Prompt, *, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse: ...
    @overload
    async def complete(
        self, prompt: Prompt, *, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> AsyncStream[CompletionChunk]: ...
    async def complete(
        self, prompt: Prompt, *, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse | AsyncStream[CompletionChunk]:
        """See `ReftClient.complete`."""
        if stream:
            return await self._transport.stream(calls.stream_complete(prompt, options))
        return await self._transport.send(calls.complete(prompt, options))

    @overload
    async def chat(
        self, messages: Messages, *, stream: Literal[False] = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletionResponse: ...
    @overload
    async def chat(
        self, messages: Messages, *, stream: Literal[True], **options: Unpack[ChatOptions]
    ) -> AsyncStream[ChatChunk]: ...
    async def chat(
        self, messages: Messages, *, stream: bool = False, **options: Unpack[ChatOptions]
    ) -> ChatCompletionResponse | AsyncStream[ChatChunk]:
        """See `ReftClient.chat`."""
        if stream:
            return await self._transport.stream(calls.stream_chat(messages, options))
        return await self._transport.send(calls.chat(messages, options))

    async def models(self) -> ModelList:
        """The base model, and the interventions that may be named as `model`."""
        return await self._transport.send(calls.list_models())

    async def health(self) -> HealthStatus:
        """Whether the server's process answers; never retried."""
        return await self._transport.send(calls.health())

    async def ready(self) -> HealthStatus:
        """Whether the engine takes requests: `ServiceUnavailableError` if not; never retried."""
        return await self._transport.send(calls.ready())

    async def version(self) -> VersionInfo:
        """The server's version."""
        return await self._transport.send(calls.server_version())

    async def close(self) -> None:
        """Close every connection; streams that are still open break."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncReftClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
