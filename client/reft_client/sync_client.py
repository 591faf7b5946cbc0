"""The synchronous client: `calls` says what to send, `exchange` what an outcome means; `transports` sends."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Literal, Unpack, overload

import httpx

from . import calls
from .admin import Admin
from .calls import Progress
from .connection import Connection
from .options import ChatOptions, CompletionOptions, Messages, Prompt
from .retry import RetryPolicy
from .routes import Routes
from .transports import Stream, Transport
from .types import (
    ChatChunk,
    ChatCompletionResponse,
    CompletionChunk,
    CompletionResponse,
    DeleteResponse,
    Grant,
    GrantDeleted,
    GrantList,
    HealthStatus,
    InterventionInfo,
    InterventionList,
    InterventionUpload,
    ModelList,
    VersionInfo,
    VersionList,
)

__all__ = ["Interventions", "ReftClient"]


class Interventions:
    """The intervention sets on the server: `client.interventions`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self, path: str | PathLike[str], name: str | None = None, *, on_progress: Progress | None = None
    ) -> InterventionUpload:
        """Upload a file; under a name that exists it becomes the next version. The server tests it first.

        Args:
            name: None = the file's name without its suffix.
            on_progress: called with (bytes sent, bytes in all).

        Raises:
            InvalidArgumentError: the file can't be read.
            APIStatusError: the server refused it; nothing was stored.
        """
        file = Path(path)
        return self._transport.send(calls.upload(file, file.stem if name is None else name, on_progress))

    def list(self) -> InterventionList:
        """The newest version of every intervention."""
        return self._transport.send(calls.list_interventions())

    def get(self, name: str, version: int | str | None = None) -> InterventionInfo:
        """One version; None = the newest. `name` may also be `name@version`."""
        return self._transport.send(calls.get_intervention(name, version))

    def versions(self, name: str) -> VersionList:
        """Every version, oldest first."""
        return self._transport.send(calls.list_versions(name))

    def delete(self, name: str, version: int | str | None = None) -> DeleteResponse:
        """Delete one version; None = all of them. Requests that run with it finish."""
        return self._transport.send(calls.delete_intervention(name, version))

    def grants(self, name: str) -> GrantList:
        """The tenants that may use a set of the caller's."""
        return self._transport.send(calls.list_grants(name))

    def grant(self, name: str, tenant: str) -> Grant:
        """Let another tenant use all versions of a set, under `<owner>/<name>`."""
        return self._transport.send(calls.create_grant(name, tenant))

    def withdraw(self, name: str, tenant: str) -> GrantDeleted:
        """Take a grant back; one that was not there is no error."""
        return self._transport.send(calls.delete_grant(name, tenant))

    def download(
        self,
        name: str,
        path: str | PathLike[str],
        version: int | str | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> Path:
        """Save a version as a file, whole or not at all; an existing file is replaced."""
        return self._transport.save(calls.download_intervention(name, version), Path(path), on_progress)


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
