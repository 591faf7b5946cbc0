"""Both clients behind one blocking face, so that the same assertions cover them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx
import pytest

from reft_client import AsyncReftClient, ReftClient, RetryPolicy
from reft_client.cli import main
from tests.unit.client.fakes import Run, Server

_MODULES = ("admin", "async_client", "async_interventions", "routes", "transports")
_WRAPPED = frozenset(f"reft_client.{name}" for name in _MODULES)


class Blocking:
    """An async object with every coroutine run to its end."""

    def __init__(self, target: Any, runner: asyncio.Runner) -> None:
        self._target = target
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if inspect.iscoroutinefunction(value):
            return lambda *args, **kwargs: self._wrap(self._runner.run(value(*args, **kwargs)))
        return self._wrap(value)

    def _wrap(self, value: Any) -> Any:
        is_ours = type(value).__module__ in _WRAPPED
        return Blocking(value, self._runner) if is_ours else value

    def __iter__(self) -> Blocking:
        return self

    def __next__(self) -> Any:
        try:
            return self._runner.run(anext(self._target))
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Blocking:
        self._runner.run(self._target.__aenter__())
        return self

    def __exit__(self, *exc: object) -> None:
        self._runner.run(self._target.__aexit__(*exc))


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A response body in pieces; an exception among them breaks the connection there."""

    def __init__(self, pieces: Sequence[bytes | Exception]) -> None:
        self._pieces = pieces
        self.is_closed = False
        self.num_read = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            if isinstance(piece, Exception):
                raise piece
            self.num_read += 1
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def close(self) -> None:
        self.is_closed = True

    async def aclose(self) -> None:
        self.is_closed = True


class Recorder:
    """Waits that were asked for, in seconds; nobody really sleeps."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.delays_s.append(seconds)

    async def sleep_async(self, seconds: float) -> None:
        self.delays_s.append(seconds)


@pytest.fixture
def sleeps() -> Recorder:
    return Recorder()


@pytest.fixture
def body() -> type[Body]:
    return Body


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest, sleeps: Recorder) -> Iterator[Callable[..., Any]]:
    """`make_client(handler, **arguments)`: a client whose requests go to `handler`."""
    with asyncio.Runner() as runner:
        opened: list[Any] = []

        def make(handler: Callable[[httpx.Request], httpx.Response], **arguments: Any) -> Any:
            arguments.setdefault("retry", RetryPolicy(jitter=lambda: 1.0, clock=lambda: 0.0))
            transport = httpx.MockTransport(handler)
            client: Any
            if request.param == "sync":
                client = ReftClient(transport=transport, sleep=sleeps.sleep, **arguments)
            else:
                client = Blocking(AsyncReftClient(transport=transport, sleep=sleeps.sleep_async, **arguments), runner)
            opened.append(client)
            return client

        yield make
        for client in opened:
            client.close()


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REFT_URL", raising=False)
    monkeypatch.delenv("REFT_API_KEY", raising=False)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def run(server: Server, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `reft ...` against `server`: exit code, standard output, standard error."""

    def run_command(*argv: str) -> tuple[int, str, str]:
        try:
            code = main(argv, transport=server.transport)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
