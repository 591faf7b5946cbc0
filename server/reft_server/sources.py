"""Hidden rows of source prompts, for interchange: each prompt is run once, and its rows are kept for a while."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace

from torch import Tensor

from reft_interventions.errors import InterventionSourceError
from reft_interventions.folded import FoldedSet

from .engine.capture import RowCapture, capture_sources
from .engine.types import Engine, GenerationRequest
from .errors import EngineDeadError

SourceRows = tuple[Tensor, ...]
"""For each of a set's `open_interventions`, `[num_positions, hidden_size]`, float32 on the CPU."""


@dataclass
class _Run:
    task: asyncio.Task[SourceRows]
    num_waiting: int = 0


class SourceCache:
    """Runs source prompts through the engine, and keeps their rows in an LRU. For one event loop.

    A source prompt runs on the base model, like any prefill: in the queue, under its tenant's share, in chunks. Rows
    depend on the prompt's tokens and on where they are taken, not on the set, its scale or its rank dimensions: those
    are what they are found by, and the `cache_salt`. Requests of one tenant that want the same rows at the same time
    wait for one run, which is cancelled when the last of them goes away.

    Args:
        budget_bytes: of rows; a source that needs more is refused.
    """

    def __init__(self, engine: Engine, budget_bytes: int) -> None:
        self._engine = engine
        self._budget_bytes = budget_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[Hashable, SourceRows] = OrderedDict()  # least recently used first
        self._runs: dict[Hashable, _Run] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of the rows that are kept."""
        return self._num_bytes

    async def get(self, folded: FoldedSet, source: GenerationRequest) -> SourceRows:
        """The rows that `folded` needs of a source prompt.

        Args:
            source: the prompt, and on whose account it runs; its sampling is not used.

        Raises:
            InterventionSourceError: the rows would take more than the whole budget.
            ReftError: the engine refused the prompt or gave it up; see `Engine.submit`.
        """
        captures = capture_sources(folded, len(source.prompt_token_ids))
        end = max((one.positions[-1] + 1 for one in captures if one.positions), default=0)
        if not end:
            return tuple(one.rows for one in captures)
        self._check_size(captures)
        # What comes after the last row that is wanted has no influence on any.
        request = replace(source, prompt_token_ids=source.prompt_token_ids[:end], captures=captures)
        wanted = tuple((one.site, one.positions) for one in captures)
        key = (request.cache_salt, request.prompt_token_ids, wanted)
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        return await self._join((key, request.tenant, request.priority), key, request)

    async def _join(self, name: Hashable, key: Hashable, request: GenerationRequest) -> SourceRows:
        run = self._runs.get(name)
        if run is None:
            run = self._runs[name] = _Run(asyncio.create_task(self._run(key, request)))
            run.task.add_done_callback(lambda done: self._forget(name, done))
        run.num_waiting += 1
        try:
            # shield: a cancelled waiter leaves, the run goes on for the others.
            return await asyncio.shield(run.task)
        finally:
            run.num_waiting -= 1
            if not run.num_waiting and not run.task.done():
                run.task.cancel()
                del self._runs[name]  # now, so that nobody joins it

    async def _run(self, key: Hashable, request: GenerationRequest) -> SourceRows:
        stream = self._engine.submit(request)
        finish_reason = None
        try:
            async for outputs in stream:
                finish_reason = outputs[-1].finish_reason
        finally:
            stream.cancel()
        if finish_reason != "stop":
            raise EngineDeadError("the engine gave the source prompt up; send the request again")
        rows = tuple(one.rows for one in request.captures)
        self._add(key, rows)
        return rows

    def _forget(self, name: Hashable, done: asyncio.Task[SourceRows]) -> None:
        run = self._runs.get(name)
        if run is not None and run.task is done:
            del self._runs[name]
        if not done.cancelled():
            done.exception()  # when every waiter has gone, nobody else looks at it

    def _add(self, key: Hashable, rows: SourceRows) -> None:
        if key in self._entries:  # another tenant ran it at the same time
            return
        self._entries[key] = rows
        self._num_bytes += _size(rows)
        while self._num_bytes > self._budget_bytes:
            _, evicted = self._entries.popitem(last=False)
            self._num_bytes -= _size(evicted)

    def _check_size(self, captures: tuple[RowCapture, ...]) -> None:
        num_rows = sum(len(one.positions) for one in captures)
        num_bytes = num_rows * self._engine.model_info.hidden_size * 4
        if num_bytes > self._budget_bytes:
            raise InterventionSourceError(
                f"the set takes {num_rows} rows of this source, {num_bytes} bytes, and the server keeps "
                f"{self._budget_bytes}: send a shorter source, or raise REFT_SOURCE_CACHE_BYTES",
                param="source",
            )


def _size(rows: SourceRows) -> int:
    return sum(one.nbytes for one in rows)
