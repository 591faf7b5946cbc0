"""Copies of intervention sets on the device: made before a request enters the engine's queue, pinned while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from reft_interventions.folded import FoldedSet
from reft_server.errors import EngineOverloadedError, InvalidRequestError


@dataclass
class _Copy:
    num_bytes: int
    folded: asyncio.Task[FoldedSet]
    num_pins: int = 0


@dataclass(frozen=True)
class DevicePoolStats:
    """What is on the device, and how often room was made."""

    num_sets: int = 0
    num_bytes: int = 0
    num_pinned: int = 0
    num_evictions: int = 0


class DevicePool:
    """An LRU of copies on one device, for one event loop, under a byte budget that is never exceeded.

    A copy is pinned while anything holds a set that `place` handed out, and so until the last request that runs it
    ends; nothing has to be given back. Copies that nothing holds make room, the least recently used first. While all
    are pinned, requests that need room wait for others to end, in the order of their arrival.

    Args:
        device: where the copies are.
        budget_bytes: of weights.
        max_wait_s: a request that waits for room longer is refused, seconds.
    """

    def __init__(self, device: torch.device, budget_bytes: int, max_wait_s: float) -> None:
        self._device = device
        self._budget_bytes = budget_bytes
        self.max_wait_s = max_wait_s
        self._copies: OrderedDict[str, _Copy] = OrderedDict()  # least recently used first
        self._num_bytes = 0
        self._num_evictions = 0
        self._turn = asyncio.Lock()
        self._unpinned = asyncio.Event()

    async def place(self, sets: Sequence[FoldedSet]) -> tuple[FoldedSet, ...]:
        """The same sets with their weights on the device.

        All the room that a request needs is taken at once: two requests never wait for each other.

        Raises:
            InvalidRequestError: together they are larger than the whole budget.
            EngineOverloadedError: the wait for room was too long.
        """
        needed = {one.content_hash: one for one in sets}
        num_bytes = sum(one.num_bytes for one in needed.values())
        if num_bytes > self._budget_bytes:
            raise InvalidRequestError(
                f"the interventions of this request take {num_bytes} bytes, the server keeps {self._budget_bytes} for "
                "them on its device; name fewer, or raise --intervention-device-bytes",
                param="intervention",
            )
        if needed.keys() - self._copies.keys():
            await self._wait_for_room(needed)
        copies = {key: self._pin(key, one) for key, one in needed.items()}
        try:
            # shield: a cancelled request leaves, the copy goes on for the others.
            placed = await asyncio.gather(*(asyncio.shield(copy.folded) for copy in copies.values()))
        except BaseException:
            for copy in copies.values():
                self._unpin(copy)
            raise
        handles = {one.content_hash: self._handle(one, copies[one.content_hash]) for one in placed}
        return tuple(handles[one.content_hash] for one in sets)

    def stats(self) -> DevicePoolStats:
        """Gauges of now, and evictions since the start."""
        num_pinned = sum(copy.num_pins > 0 for copy in self._copies.values())
        return DevicePoolStats(len(self._copies), self._num_bytes, num_pinned, self._num_evictions)

    async def _wait_for_room(self, needed: Mapping[str, FoldedSet]) -> None:
        try:
            async with asyncio.timeout(self.max_wait_s), self._turn:
                while not self._make_room(needed):
                    self._unpinned.clear()
                    await self._unpinned.wait()
        except TimeoutError as error:
            raise EngineOverloadedError(
                f"running requests used the whole device memory for interventions for {self.max_wait_s:g} s; try again"
            ) from error

    def _make_room(self, needed: Mapping[str, FoldedSet]) -> bool:
        """Evict until the missing sets fit; False, and nothing is evicted, when pinned copies leave too little."""
        missing = sum(one.num_bytes for key, one in needed.items() if key not in self._copies)
        excess = self._num_bytes + missing - self._budget_bytes
        idle = [
            (key, copy)
            for key, copy in self._copies.items()
            if copy.num_pins == 0 and copy.folded.done() and key not in needed
        ]
        if sum(copy.num_bytes for _, copy in idle) < excess:
            return False
        for key, copy in idle:
            if excess <= 0:
                break
            excess -= copy.num_bytes
            self._num_evictions += 1
            self._remove(key, copy)
        return True

    def _pin(self, key: str, one: FoldedSet) -> _Copy:
        """Count one more holder, and start the copy if there is none: the caller has made room."""
        copy = self._copies.get(key)
        if copy is None:
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(one.to, self._device))
            copy = self._copies[key] = _Copy(one.num_bytes, task)
            self._num_bytes += copy.num_bytes
            task.add_done_callback(lambda done: self._on_copied(key, copy, done))
        self._copies.move_to_end(key)
        copy.num_pins += 1
        return copy

    def _on_copied(self, key: str, copy: _Copy, done: asyncio.Task[FoldedSet]) -> None:
        if done.cancelled() or done.exception() is not None:  # the next request tries again
            self._remove(key, copy)
        self._unpinned.set()

    def _remove(self, key: str, copy: _Copy) -> None:
        del self._copies[key]
        self._num_bytes -= copy.num_bytes

    def _handle(self, placed: FoldedSet, copy: _Copy) -> FoldedSet:
        """An object of this request's own, whose end of life unpins the copy, wherever the request ends."""
        handle = replace(placed)
        loop = asyncio.get_running_loop()
        weakref.finalize(handle, self._unpin_from_any_thread, loop, copy).atexit = False
        return handle

    def _unpin_from_any_thread(self, loop: asyncio.AbstractEventLoop, copy: _Copy) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the pool with it
            loop.call_soon_threadsafe(self._unpin, copy)

    def _unpin(self, copy: _Copy) -> None:
        copy.num_pins -= 1
        self._unpinned.set()
