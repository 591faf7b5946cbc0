"""Functions that others have run by the engine's thread, between two steps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class Jobs(Generic[T]):
    """Functions that wait, and who waits for their results. Its methods are called under the engine's lock."""

    def __init__(self) -> None:
        self._waiting: list[Callable[[], None]] = []
        self._futures: set[Future[T]] = set()

    def __len__(self) -> int:
        """Functions that nobody has taken yet."""
        return len(self._waiting)

    def add(self, function: Callable[[], T]) -> Future[T]:
        """Queue a function; its result, or what it raises, comes by the future."""
        future: Future[T] = Future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)

        def run() -> None:
            try:
                result = function()
            except Exception as error:  # noqa: BLE001 - handed to the waiting caller
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self._waiting.append(run)
        return future

    def take(self) -> list[Callable[[], None]]:
        """All that wait, to be called without the lock."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def fail(self, error: Exception) -> None:
        """Tell everybody who still waits for a result that there will be none."""
        for future in [*self._futures]:
            if not future.done():
                future.set_exception(error)
