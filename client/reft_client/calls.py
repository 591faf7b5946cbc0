"""Every operation as data: what to send and how to read the answer. No I/O but reading an uploaded file."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError

from .errors import APIResponseValidationError, InvalidArgumentError
from .options import ChatOptions, CompletionOptions, GenerationOptions, Messages, Prompt
from .types import (
    ChatChunk,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatMessage,
    CompletionChunk,
    CompletionRequest,
    CompletionResponse,
    Grant,
    GrantDeleted,
    GrantList,
    HealthStatus,
    InterventionInfo,
    InterventionRef,
    ModelList,
    VersionInfo,
)

__all__ = ["Call", "FileBody", "Progress"]

T = TypeVar("T", bound=BaseModel)
R = TypeVar("R", CompletionRequest, ChatCompletionRequest)
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

CHUNK_BYTES = 256 * 1024
_FULL_NAME = re.compile(r"(?P<owner>[a-z0-9][a-z0-9._-]*)/(?P<name>[a-z0-9][a-z0-9._-]*)")  # a set of another tenant


class FileBody(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A file as a request body. It is opened anew for every attempt and read in pieces, never whole."""

    def __init__(self, path: Path, on_progress: Progress | None) -> None:
        try:
            with path.open("rb") as file:
                self.num_bytes = os.fstat(file.fileno()).st_size
        except OSError as error:
            raise InvalidArgumentError(f"can't read {path}: {error.strerror}") from error
        self._path = path
        self._on_progress = on_progress

    def __iter__(self) -> Iterator[bytes]:
        num_sent = 0
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
                num_sent += len(chunk)
                if self._on_progress is not None:
                    self._on_progress(num_sent, self.num_bytes)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:  # a local read of 256 KiB takes less than handing it to a thread
            yield chunk


@dataclass(frozen=True)
class Call(Generic[T]):
    """One operation.

    Args:
        answer: the model of the response, or of one event of the stream.
        is_idempotent: it may be sent again after the connection broke midway; a refusal (429, 503) or a failed
            connect may always be.
        can_retry: False for the probes, which report what they find.
    """

    method: str
    path: str
    answer: type[T]
    params: Mapping[str, str] = field(default_factory=dict)
    body: bytes | FileBody | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    accept: str = "application/json"
    is_idempotent: bool = False
    can_retry: bool = True
    timeout_s: float | None = None

    @property
    def is_stream(self) -> bool:
        """The body of the answer is read piece by piece."""
        return self.accept not in ("application/json", "text/markdown")

    def build_request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The request of one attempt."""
        headers = {"accept": self.accept, **self.headers}
        timeout = http.timeout
        if self.timeout_s is not None:
            timeout = httpx.Timeout(
                connect=timeout.connect, read=self.timeout_s, write=timeout.write, pool=timeout.pool
            )
        if isinstance(self.body, FileBody):
            headers |= {"content-type": "application/octet-stream", "content-length": str(self.body.num_bytes)}
            bare = http.build_request(self.method, self.path, params=self.params, headers=headers, timeout=timeout)
            return httpx.Request(
                bare.method, bare.url, headers=bare.headers, stream=self.body, extensions=bare.extensions
            )
        if self.body is not None:
            headers.setdefault("content-type", "application/json")
        return http.build_request(
            self.method, self.path, params=self.params, headers=headers, content=self.body, timeout=timeout
        )

    def read_answer(self, response: httpx.Response) -> T:
        """The typed answer of a successful response.

        Raises:
            APIResponseValidationError: it is something else.
        """
        return parse(self.answer, response.content, str(response.request.url))


def parse(model: type[T], data: bytes | str, source: str) -> T:
    """Read JSON of the server.

    Raises:
        APIResponseValidationError: the JSON is broken, or not of this shape.
    """
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        raise APIResponseValidationError(
            f"the answer of {source} is not a {model.__name__} ({f'{where}: ' if where else ''}{detail['msg']}); "
            "is a reft-serve server of a matching version there?"
        ) from error


def complete(prompt: Prompt, options: CompletionOptions) -> Call[CompletionResponse]:
    """`POST /v1/completions`."""
    return _generation("/v1/completions", CompletionResponse, _completion_request(prompt, options, False), options)


def stream_complete(prompt: Prompt, options: CompletionOptions) -> Call[CompletionChunk]:
    """`POST /v1/completions` with `stream`."""
    return _generation("/v1/completions", CompletionChunk, _completion_request(prompt, options, True), options)


def chat(messages: Messages, options: ChatOptions) -> Call[ChatCompletionResponse]:
    """`POST /v1/chat/completions`."""
    return _generation("/v1/chat/completions", ChatCompletionResponse, _chat_request(messages, options, False), options)


def stream_chat(messages: Messages, options: ChatOptions) -> Call[ChatChunk]:
    """`POST /v1/chat/completions` with `stream`."""
    return _generation("/v1/chat/completions", ChatChunk, _chat_request(messages, options, True), options)


def _completion_request(prompt: Prompt, options: CompletionOptions, stream: bool) -> CompletionRequest:
    return _build(CompletionRequest, {"prompt": _as_lists(prompt), **_fields(options, stream)}, options)


def _chat_request(messages: Messages, options: ChatOptions, stream: bool) -> ChatCompletionRequest:
    return _build(ChatCompletionRequest, {"messages": as_turns(messages), **_fields(options, stream)}, options)


def as_turns(messages: Messages) -> list[ChatMessage | Mapping[str, object]]:
    """A conversation as a list; a text is one user turn."""
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def _fields(options: GenerationOptions, stream: bool) -> dict[str, object]:
    fields = {key: _as_lists(value) for key, value in options.items() if key not in ("extra_body", "timeout_s")}
    return {**fields, "stream": True} if stream else fields


def _as_lists(value: object) -> object:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_as_lists(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _build(model: type[R], fields: dict[str, object], options: GenerationOptions) -> R:
    try:
        request = model.model_validate(fields)
        unknown = sorted(request.model_extra or {})
        if unknown:
            raise InvalidArgumentError(f"unknown argument {unknown[0]!r}; pass it in extra_body to send it as it is")
        return model.model_validate({**fields, **options.get("extra_body", {})})
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        raise InvalidArgumentError(f"{where}: {message}" if where else message) from error


def _generation(path: str, answer: type[T], request: BaseModel, options: GenerationOptions) -> Call[T]:
    return Call(
        "POST",
        path,
        answer,
        body=_encode(request),
        accept="text/event-stream" if issubclass(answer, CompletionChunk | ChatChunk) else "application/json",
        timeout_s=options.get("timeout_s"),
    )


def _encode(request: BaseModel) -> bytes:
    try:
        return request.model_dump_json(exclude_unset=True).encode()
    except PydanticSerializationError as error:  # only extra_body can hold what JSON has no form for
        raise InvalidArgumentError(f"extra_body is not JSON: {error}") from error


def get_intervention(name: str, version: int | str | None) -> Call[InterventionInfo]:
    """`GET /v1/interventions/{name}`."""
    path, params = target(name, version)
    return Call("GET", path, InterventionInfo, params=params, is_idempotent=True)


def list_grants(name: str) -> Call[GrantList]:
    """`GET /v1/interventions/{name}/grants`."""
    return Call("GET", f"/v1/interventions/{quote(name, safe='')}/grants", GrantList, is_idempotent=True)


def create_grant(name: str, tenant: str) -> Call[Grant]:
    """`PUT /v1/interventions/{name}/grants/{tenant}`."""
    return Call("PUT", _grant_path(name, tenant), Grant, is_idempotent=True)


def delete_grant(name: str, tenant: str) -> Call[GrantDeleted]:
    """`DELETE /v1/interventions/{name}/grants/{tenant}`."""
    return Call("DELETE", _grant_path(name, tenant), GrantDeleted, is_idempotent=True)


def _grant_path(name: str, tenant: str) -> str:
    return f"/v1/interventions/{quote(name, safe='')}/grants/{quote(tenant, safe='')}"


def download_intervention(name: str, version: int | str | None) -> Call[InterventionInfo]:
    """`GET /v1/interventions/{name}/download`; the answer is the file itself."""
    path, params = target(name, version)
    accept = "application/octet-stream"
    return Call("GET", f"{path}/download", InterventionInfo, params=params, accept=accept, is_idempotent=True)


def target(name: str, version: int | str | None = None) -> tuple[str, dict[str, str]]:
    """The path and the query of a set: `name`, `owner/name`, either with `@version`.

    Raises:
        InvalidArgumentError: it can't be read as one.
    """
    try:
        ref = InterventionRef(name=name, version=version)
    except ValidationError as error:
        raise InvalidArgumentError(error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")) from error
    full = _FULL_NAME.fullmatch(ref.name)
    bare, params = (full["name"], {"tenant": full["owner"]}) if full else (ref.name, {})
    if ref.version is not None:
        params["version"] = str(ref.version)
    return f"/v1/interventions/{quote(bare, safe='')}", params


def list_models() -> Call[ModelList]:
    """`GET /v1/models`."""
    return Call("GET", "/v1/models", ModelList, is_idempotent=True)


def health() -> Call[HealthStatus]:
    """`GET /health`: the process answers."""
    return Call("GET", "/health", HealthStatus, is_idempotent=True, can_retry=False)


def ready() -> Call[HealthStatus]:
    """`GET /ready`: the engine takes requests."""
    return Call("GET", "/ready", HealthStatus, is_idempotent=True, can_retry=False)


def server_version() -> Call[VersionInfo]:
    """`GET /version`."""
    return Call("GET", "/version", VersionInfo, is_idempotent=True)
