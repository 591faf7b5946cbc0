"""The only I/O of the client: httpx, once blocking and once not, around the same `Exchange` and `StreamDecoder`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from pathlib import Path
from typing import Generic, TypeVar

import httpx
from pydantic import BaseModel

from .calls import Call, Progress
from .connection import LIMITS, Connection
from .errors import error_from_transport
from .exchange import Exchange, FileSink, StreamDecoder
from .retry import RetryPolicy

__all__ = ["AsyncStream", "AsyncTransport", "Stream", "Transport"]

T = TypeVar("T", bound=BaseModel)


class Stream(Generic[T]):
    """Chunks of an answer as they come. Use it in a `with` block: leaving it early closes the connection, and the
    server then stops generating.

    Iterating raises `APIStatusError` when the server fails midway, `StreamTruncatedError` when the end is missing.
    """

    def __init__(self, decoder: StreamDecoder[T], response: httpx.Response) -> None:
        self._decoder = decoder
        self._response = response
        self._chunks = self._read()

    def _read(self) -> Generator[T, None, None]:
        broken: httpx.RequestError | None = None
        try:
            for data in self._response.iter_bytes():
                yield from self._decoder.feed(data)
        except httpx.RequestError as error:
            broken = error
        finally:
            self._response.close()
        self._decoder.finish(broken)

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        return next(self._chunks)

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the rest of the answer. Safe to call twice."""
        self._chunks.close()
        self._response.close()


class Transport:
    """Sends calls and does what the exchange says."""

    def __init__(
        self,
        connection: Connection,
        retry: RetryPolicy,
        transport: httpx.BaseTransport | None,
        sleep: Callable[[float], None],
    ) -> None:
        self.base_url = connection.base_url
        self._retry = retry
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=connection.base_url,
            headers=connection.headers,
            timeout=connection.timeout,
            limits=LIMITS,
            trust_env=connection.trust_env,
            transport=transport,
        )

    def open(self, call: Call[T]) -> httpx.Response:
        """Send until the server says yes; the body of a streamed answer is still unread."""
        exchange = Exchange(call, self._retry, self.base_url)
        while True:
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = self._http.send(call.build_request(self._http), stream=call.is_stream)
                if not outcome.is_success:
                    outcome.read()
            except httpx.RequestError as error:
                outcome = error
            settled = exchange.settle(outcome)
            if isinstance(settled, httpx.Response):
                return settled
            self._sleep(settled)

    def send(self, call: Call[T]) -> T:
        """Send and read the whole answer."""
        return call.read_answer(self.open(call))

    def text(self, call: Call[T]) -> str:
        """Send, and read the whole answer as text."""
        return self.open(call).text

    def stream(self, call: Call[T]) -> Stream[T]:
        """Send, and read the answer as the caller asks for it."""
        response = self.open(call)
        try:
            return Stream(StreamDecoder(call, response, self.base_url), response)
        except BaseException:
            response.close()
            raise

    def save(self, call: Call[T], path: Path, on_progress: Progress | None) -> Path:
        """Send, and write the answer to a file."""
        response = self.open(call)
        try:
            with FileSink(path, response, on_progress) as sink:
                for data in response.iter_bytes():
                    sink.write(data)
        except httpx.RequestError as error:
            raise error_from_transport(error, self.base_url) from error
        finally:
            response.close()
        return path

    def close(self) -> None:
        """Close every connection."""
        self._http.close()


class AsyncStream(Generic[T]):
    """`Stream` for `async for`; use it in an `async with` block."""

    def __init__(self, decoder: StreamDecoder[T], response: httpx.Response) -> None:
        self._decoder = decoder
        self._response = response
        self._chunks = self._read()

    async def _read(self) -> AsyncGenerator[T, None]:
        broken: httpx.RequestError | None = None
        try:
            async for data in self._response.aiter_bytes():
                for chunk in self._decoder.feed(data):
                    yield chunk
        except httpx.RequestError as error:
            broken = error
        finally:
            await self._response.aclose()
        self._decoder.finish(broken)

    def __aiter__(self) -> AsyncStream[T]:
        return self

    async def __anext__(self) -> T:
        return await anext(self._chunks)

    async def __aenter__(self) -> AsyncStream[T]:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Give up the rest of the answer. Safe to call twice."""
        await self._chunks.aclose()
        await self._response.aclose()


class AsyncTransport:
    """Sends calls and does what the exchange says."""

    def __init__(
        self,
        connection: Connection,
        retry: RetryPolicy,
        transport: httpx.AsyncBaseTransport | None,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.base_url = connection.base_url
        self._retry = retry
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=connection.base_url,
            headers=connection.headers,
            timeout=connection.timeout,
            limits=LIMITS,
            trust_env=connection.trust_env,
            transport=transport,
        )

    async def open(self, call: Call[T]) -> httpx.Response:
        """Send until the server says yes; the body of a streamed answer is still unread."""
        exchange = Exchange(call, self._retry, self.base_url)
        while True:
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = await self._http.send(call.build_request(self._http), stream=call.is_stream)
                if not outcome.is_success:
                    await outcome.aread()
            except httpx.RequestError as error:
                outcome = error
            settled = exchange.settle(outcome)
            if isinstance(settled, httpx.Response):
                return settled
            await self._sleep(settled)

    async def send(self, call: Call[T]) -> T:
        """Send and read the whole answer."""
        return call.read_answer(await self.open(call))

    async def text(self, call: Call[T]) -> str:
        """Send, and read the whole answer as text."""
        return (await self.open(call)).text

    async def stream(self, call: Call[T]) -> AsyncStream[T]:
        """Send, and read the answer as the caller asks for it."""
        response = await self.open(call)
        try:
            return AsyncStream(StreamDecoder(call, response, self.base_url), response)
        except BaseException:
            await response.aclose()
            raise

    async def save(self, call: Call[T], path: Path, on_progress: Progress | None) -> Path:
        """Send, and write the answer to a file."""
        response = await self.open(call)
        try:
            with FileSink(path, response, on_progress) as sink:
                async for data in response.aiter_bytes():
                    sink.write(data)
        except httpx.RequestError as error:
            raise error_from_transport(error, self.base_url) from error
        finally:
            await response.aclose()
        return path

    async def close(self) -> None:
        """Close every connection."""
        await self._http.aclose()
