"""Where shadow work runs: a few tasks at once, beside everything that answers somebody."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any


class ShadowSlots:
    """Runs at most `num_slots` tasks, and one of each tenant; what finds no place is not run. For one event loop.

    Attributes:
        key: of the hashes that the log has of answers: equal answers can be told within this process, none guessed.
    """

    def __init__(self, num_slots: int) -> None:
        self.key = secrets.token_bytes(32)
        self.num_slots = num_slots
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def is_free(self, tenant: str) -> bool:
        """Whether `start` may be called for the tenant now."""
        return tenant not in self._tasks and len(self._tasks) < self.num_slots

    def start(self, tenant: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, which must not raise, in a place that is free."""
        task = asyncio.create_task(work)
        self._tasks[tenant] = task
        task.add_done_callback(lambda _: self._tasks.pop(tenant))

    async def wait(self) -> None:
        """Return when what runs now has ended."""
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def close(self) -> None:
        """End what runs; nobody waits for it."""
        for task in self._tasks.values():
            task.cancel()
        await self.wait()
