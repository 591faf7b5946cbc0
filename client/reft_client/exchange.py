"""What happens between a call and its answer, without I/O: retries, errors, the events of a stream, saved files."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from .calls import Call, Progress, parse
from .errors import (
    APIResponseValidationError,
    APIStatusError,
    InvalidArgumentError,
    ReftClientError,
    StreamTruncatedError,
    error_from_event,
    error_from_response,
    error_from_transport,
)
from .retry import RetryPolicy
from .sse import EventParser
from .types import ErrorResponse

__all__ = ["Exchange", "FileSink", "StreamDecoder"]

T = TypeVar("T", bound=BaseModel)

# The request never left, so that sending it again can't do anything twice.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_BROKE_MIDWAY = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
_REFUSED_EARLY = (429, 503)


class Exchange:
    """The attempts of one call. The caller sends, and hands each outcome to `settle`."""

    def __init__(self, call: Call[T], policy: RetryPolicy, base_url: str) -> None:
        self._call = call
        self._policy = policy
        self._base_url = base_url
        self._num_retries = 0
        self._started_s = policy.clock()

    def settle(self, outcome: httpx.Response | httpx.RequestError) -> httpx.Response | float:
        """The answer, or how many seconds to wait before sending again.

        Args:
            outcome: what came back; the body of a response that is not a success must have been read.

        Raises:
            APIStatusError: the server refused, and trying again is not allowed or did not help.
            APIConnectionError: it can't be reached, likewise.
        """
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return outcome
        error: ReftClientError
        retry_after_s: float | None = None
        if isinstance(outcome, httpx.Response):
            error = error_from_response(outcome)
            retry_after_s = error.retry_after_s
        else:
            error = error_from_transport(outcome, self._base_url)
        delay_s: float | None = None
        if self._call.can_retry and self._may_repeat(outcome):
            elapsed_s = self._policy.clock() - self._started_s
            delay_s = self._policy.delay_s(self._num_retries, elapsed_s, retry_after_s)
        if delay_s is None:
            raise error from (outcome if isinstance(outcome, httpx.RequestError) else None)
        self._num_retries += 1
        return delay_s

    def _may_repeat(self, outcome: httpx.Response | httpx.RequestError) -> bool:
        if isinstance(outcome, httpx.Response):
            return outcome.status_code in _REFUSED_EARLY
        return isinstance(outcome, _NEVER_SENT) or (self._call.is_idempotent and isinstance(outcome, _BROKE_MIDWAY))


class StreamDecoder(Generic[T]):
    """Bytes of an event stream in, typed chunks out."""

    def __init__(self, call: Call[T], response: httpx.Response, base_url: str) -> None:
        content_type = response.headers.get("content-type", "")
        if not content_type.startswith("text/event-stream"):
            raise APIResponseValidationError(
                f"{response.request.url} answered {content_type or 'no content type'} instead of an event stream"
            )
        self._answer = call.answer
        self._url = str(response.request.url)
        self._base_url = base_url
        self._request_id = response.headers.get("x-request-id")
        self._parser = EventParser()
        self._is_done = False

    def feed(self, data: bytes) -> Iterator[T]:
        """Yield the chunks that `data` completes. Exhaust it before the next call.

        Raises:
            APIStatusError: the server sent an error instead of the next chunk.
            APIResponseValidationError: an event of another shape.
        """
        for event in self._parser.feed(data):
            if self._is_done:
                return
            if event.data == "[DONE]":
                self._is_done = True
                return
            if (error := self._error_of(event.data)) is not None:
                raise error
            yield parse(self._answer, event.data, self._url)

    def finish(self, broken: httpx.RequestError | None = None) -> None:
        """The connection ended, by itself or because it broke; after `[DONE]` either is fine.

        Raises:
            StreamTruncatedError: it ended before `[DONE]`.
            APIConnectionError: it broke or fell silent.
        """
        if self._is_done:
            return
        if broken is None or isinstance(broken, httpx.RemoteProtocolError):
            raise StreamTruncatedError("the stream ended before the answer did; ask again") from broken
        raise error_from_transport(broken, self._base_url) from broken

    def _error_of(self, data: str) -> APIStatusError | None:
        if '"error"' not in data:
            return None
        try:
            error = ErrorResponse.model_validate_json(data).error
        except ValidationError:  # a chunk whose text holds the word
            return None
        return error_from_event(error, self._request_id)


class FileSink:
    """Write a download beside its target and move it there when it is whole; a broken one leaves nothing."""

    def __init__(self, path: Path, response: httpx.Response, on_progress: Progress | None) -> None:
        self._path = path
        self._num_bytes = int(response.headers.get("content-length", 0))
        self._num_written = 0
        self._on_progress = on_progress
        self._file: BinaryIO | None = None
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")

    def __enter__(self) -> FileSink:
        try:
            self._file = self._part.open("xb")
        except OSError as error:
            raise InvalidArgumentError(f"can't write {self._path}: {error.strerror}") from error
        return self

    def write(self, data: bytes) -> None:
        """Append a piece."""
        if self._file is None:
            raise ValueError("write outside the with block")
        self._file.write(data)
        self._num_written += len(data)
        if self._on_progress is not None:
            self._on_progress(self._num_written, self._num_bytes)

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if exc_type is None:
            self._part.replace(self._path)
        else:
            self._part.unlink(missing_ok=True)
