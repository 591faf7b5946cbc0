"""Copies of intervention sets on the device: made before a request enters the engine's queue, pinned while it runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from reft_interventions.folded import FoldedSet
from reft_server.errors import EngineOverloadedError, InvalidRequestError

from .copy_stream import CopyStream, copy_stream

logger = logging.getLogger(__name__)


@dataclass
class _Copy:
    key: str
    num_bytes: int
    folded: asyncio.Task[FoldedSet]
    num_pins: int = 0
    is_complete: bool = False


@dataclass(frozen=True)
class DevicePoolStats:
    """What is on the device, and how often room was made."""

    num_sets: int = 0
    num_bytes: int = 0
    num_pinned: int = 0
    num_evictions: int = 0


class DevicePool:
    """An LRU of copies on one device, for one event loop, under a byte budget that is never exceeded.

    A set goes there in one piece: its weights are packed into one buffer of host memory (`stage`, once, when it is
    loaded), which one copy moves beside the engine's kernels (`CopyStream`). Any number of sets costs the same.

    A copy is pinned while anything holds a set that `place` handed out, and so until the last request that runs it
    ends; nothing has to be given back. Copies that nothing holds make room, the least recently used first. While all
    are pinned, requests that need room wait for others to end, in the order of their arrival.

    Args:
        device: where the copies are.
        budget_bytes: of weights.
        max_wait_s: a request that waits for room longer is refused, seconds.
        stream: makes the copies; None = the device's own way.
    """

    def __init__(
        self, device: torch.device, budget_bytes: int, max_wait_s: float, stream: CopyStream | None = None
    ) -> None:
        self._stream = stream or copy_stream(device)
        self._budget_bytes = budget_bytes
        self.max_wait_s = max_wait_s
        self._copies: dict[str, _Copy] = {}
        self._idle: OrderedDict[str, _Copy] = OrderedDict()  # complete and not pinned, least recently used first
        self._num_bytes = 0
        self._num_idle_bytes = 0
        self._num_evictions = 0
        self._turn = asyncio.Lock()
        self._unpinned = asyncio.Event()

    def stage(self, folded: FoldedSet) -> FoldedSet:
        """The set in memory that one copy to the device reads; itself if it is there. For any thread."""
        if folded.buffer is not None:
            return folded
        try:
            return folded.packed(is_pinned=self._stream.is_pinned)
        except RuntimeError as error:
            if not self._stream.is_pinned:
                raise
            logger.warning("no page-locked memory left, copies to the device take longer reason=%s", error)
            return folded.packed()

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
        num_pinned = len(self._copies) - len(self._idle)
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
        kept = [self._idle[key] for key in needed if key in self._idle]
        if self._num_idle_bytes - sum(copy.num_bytes for copy in kept) < excess:
            return False
        while excess > 0:
            excess -= self._evict(next(key for key in self._idle if key not in needed))
        return True

    def _evict(self, key: str) -> int:
        """Forget an idle copy; its bytes."""
        copy = self._take_from_idle(key)
        self._num_evictions += 1
        self._remove(copy)
        return copy.num_bytes

    def _pin(self, key: str, one: FoldedSet) -> _Copy:
        """Count one more holder, and start the copy if there is none: the caller has made room."""
        if key in self._idle:
            copy = self._take_from_idle(key)
        elif key in self._copies:
            copy = self._copies[key]
        else:
            task = asyncio.get_running_loop().create_task(asyncio.to_thread(self._copy, one))
            copy = self._copies[key] = _Copy(key, one.num_bytes, task)
            self._num_bytes += copy.num_bytes
            task.add_done_callback(lambda done: self._on_copied(copy, done))
        copy.num_pins += 1
        return copy

    def _copy(self, one: FoldedSet) -> FoldedSet:
        staged = self.stage(one)
        assert staged.buffer is not None  # it is staged
        return staged.with_buffer(self._stream.copy(staged.buffer))

    def _on_copied(self, copy: _Copy, done: asyncio.Task[FoldedSet]) -> None:
        if done.cancelled() or done.exception() is not None:  # the next request tries again
            self._remove(copy)
        else:
            copy.is_complete = True
        self._on_idle(copy)

    def _on_idle(self, copy: _Copy) -> None:
        """Something about a copy has ended: it may make room from now on, if it is there and nothing holds it."""
        if copy.is_complete and copy.num_pins == 0:
            self._idle[copy.key] = copy
            self._num_idle_bytes += copy.num_bytes
        self._unpinned.set()

    def _take_from_idle(self, key: str) -> _Copy:
        copy = self._idle.pop(key)
        self._num_idle_bytes -= copy.num_bytes
        return copy

    def _remove(self, copy: _Copy) -> None:
        del self._copies[copy.key]
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
        self._on_idle(copy)
