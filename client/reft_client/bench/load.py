"""Sends the sessions of a plan, in a closed or an open loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator

from .bodies import Exchange, request_body
from .options import BenchOptions
from .plan import Plan, Session
from .records import RequestRecord
from .sender import Sender

__all__ = ["Load"]


class Load:
    """One process's share of a run.

    Args:
        worker: the number of this process; session i belongs to process `i mod num_workers`.

    Attributes:
        records: of the requests that are over.
        num_running: requests under way.
        is_interrupted: the run was cancelled; requests that were under way then have no record.
    """

    def __init__(
        self, plan: Plan, sender: Sender, options: BenchOptions, *, worker: int = 0, num_workers: int = 1
    ) -> None:
        self._plan = plan
        self._sender = sender
        self._options = options
        self._worker = worker
        self._num_workers = num_workers
        self._end_s = float("inf") if options.duration_s is None else options.warmup_s + options.duration_s
        self.records: list[RequestRecord] = []
        self.num_running = 0
        self.is_interrupted = False

    async def run(self) -> None:
        """Send everything and wait for the answers; a cancellation ends it early, what is over stays in `records`."""
        try:
            await (self._open_loop() if self._options.is_open_loop else self._closed_loop())
        except asyncio.CancelledError:
            self.is_interrupted = True

    async def _closed_loop(self) -> None:
        total = self._options.concurrency or 1
        share = total // self._num_workers + (self._worker < total % self._num_workers)
        indexes = self._indexes()
        async with asyncio.TaskGroup() as group:
            for _ in range(share):
                group.create_task(self._user(indexes))

    async def _user(self, indexes: Iterator[int]) -> None:
        """Send sessions, each after the one before, until there are no more or the time is over."""
        for index in indexes:
            if self._sender.now_s() >= self._end_s:
                return
            await self.converse(self._plan.session(index))
            await asyncio.sleep(self._think_s(index, -1))

    async def _open_loop(self) -> None:
        due_times = enumerate(self._plan.due_times())
        async with asyncio.TaskGroup() as group:
            for index, due_s in due_times:
                if due_s >= self._end_s or index == self._plan.num_sessions:
                    return
                if index % self._num_workers != self._worker:
                    continue
                session = self._plan.session(index)
                await asyncio.sleep(max(0.0, due_s - self._sender.now_s()))
                group.create_task(self.converse(session, due_s))

    async def converse(self, session: Session, due_s: float | None = None) -> list[RequestRecord]:
        """Send the session's turns and return their records; a failed one ends it.

        Args:
            due_s: when the first is due; None = now.
        """
        history: list[Exchange] = []
        records: list[RequestRecord] = []
        for number, turn in enumerate(session.turns):
            body = request_body(self._options, session, turn, history)
            intended_s = self._sender.now_s() if due_s is None else due_s
            record = RequestRecord(session.index, number, session.intervention, session.tenant, intended_s=intended_s)
            record.is_warmup = session.index < self._options.warmup_requests or intended_s < self._options.warmup_s
            self.num_running += 1
            try:
                await self._sender.send(body, record)
            finally:
                self.num_running -= 1
            records.append(record)
            self.records.append(record)
            if record.error is not None:
                break
            if number + 1 < len(session.turns):
                history.append((str(turn.prompt), record.text))
                think_s = self._think_s(session.index, number)
                due_s = record.end_s + think_s
                await asyncio.sleep(think_s)
        return records

    def _indexes(self) -> Iterator[int]:
        index = self._worker
        while self._plan.num_sessions is None or index < self._plan.num_sessions:
            yield index
            index += self._num_workers

    def _think_s(self, index: int, turn: int) -> float:
        return self._options.think_time.sample(random.Random(f"{self._options.seed}/think/{index}/{turn}"))
