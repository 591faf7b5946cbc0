"""Tokens on their way from the engine's thread to one waiting coroutine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

from reft_server.errors import ReftError

from .types import TokenOutput


class QueueStream:
    """A `TokenStream` fed by the engine's thread through `deliver`, which runs on the event loop.

    Args:
        loop: the loop of the coroutine that reads.
        on_cancel: wakes the engine, so that a cancelled sequence leaves at once.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, on_cancel: Callable[[], None]) -> None:
        self.loop = loop
        self.is_cancelled = False
        self._on_cancel = on_cancel
        self._outputs: list[TokenOutput] = []
        self._arrival: asyncio.Future[None] | None = None  # somebody waits for outputs
        self._has_end = False
        self._is_finished = False

    def deliver(self, outputs: list[TokenOutput]) -> None:
        """Add outputs; called on the event loop only. What comes after an end is dropped."""
        if not self._has_end:
            self._has_end = outputs[-1].finish_reason is not None
            self._outputs += outputs
            if self._arrival is not None and not self._arrival.done():
                self._arrival.set_result(None)

    def cancel(self) -> None:
        """Give up the request. Safe from any thread, any number of times."""
        if not (self.is_cancelled or self._is_finished):
            self.is_cancelled = True
            self._on_cancel()

    def fail(self, error: ReftError) -> None:
        """Give up the request, and end with an error; called on the event loop only."""
        self.cancel()
        self.deliver([TokenOutput(None, finish_reason="error", error=error)])

    async def __aiter__(self) -> AsyncIterator[list[TokenOutput]]:
        try:
            while not self._is_finished:
                if not self._outputs:
                    self._arrival = self.loop.create_future()
                    await self._arrival
                outputs, self._outputs = self._outputs, []
                self._is_finished = outputs[-1].finish_reason is not None
                error: ReftError | None = outputs[-1].error
                if error is not None:
                    outputs = [output for output in outputs if output.error is None]
                if outputs:
                    yield outputs
                if error is not None:
                    raise error
        finally:
            self.cancel()


class NullStream:
    """The stream of a sequence that nobody waits for."""

    is_cancelled = False

    def cancel(self) -> None:
        """Nobody waits: nothing to do."""


def publish(batches: Iterable[tuple[QueueStream | NullStream, list[TokenOutput]]]) -> None:
    """Hand a step's outputs to their event loops, one wake-up per loop. Called from the engine's thread."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[QueueStream, list[TokenOutput]]]] = {}
    for stream, outputs in batches:
        if isinstance(stream, QueueStream):
            by_loop.setdefault(stream.loop, []).append((stream, outputs))
    for loop, deliveries in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, deliveries)
        except RuntimeError:  # the loop was closed: nobody waits any more
            for stream, _ in deliveries:
                stream.cancel()


def _deliver(deliveries: list[tuple[QueueStream, list[TokenOutput]]]) -> None:
    for stream, outputs in deliveries:
        stream.deliver(outputs)
