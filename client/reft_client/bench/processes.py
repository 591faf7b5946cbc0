"""Several processes that send one plan together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from ..errors import ReftClientError
from .monitor import ClientHealth
from .records import RequestRecord
from .worker import Job, Outcome, Snapshot

__all__ = ["WorkerError", "run_processes"]

MAX_LINE_BYTES = 256 << 20
START_DELAY_S = 0.5


class WorkerError(ReftClientError):
    """A process of the load tester ended before its work was done."""


class _Worker:
    """One process and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.snapshot = Snapshot()
        self.records: list[RequestRecord] = []
        self.healths: list[ClientHealth] = []
        self.is_interrupted = False

    async def send(self, text: str) -> None:
        """Write a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")
        await self.process.stdin.drain()

    async def hear(self) -> dict[str, Any]:
        """Its next message.

        Raises:
            WorkerError: it ended.
        """
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            raise WorkerError(f"a process of the load tester ended with status {await self.process.wait()}")
        message: dict[str, Any] = json.loads(line)
        return message

    async def follow(self, on_snapshot: Callable[[], None]) -> None:
        """Take what it says until it is done."""
        while True:
            message = await self.hear()
            event = message.pop("event")
            if event == "record":
                self.records.append(RequestRecord.from_json(message))
            elif event == "health":
                self.healths.append(ClientHealth(message["cpu_share"], tuple(message["lags_s"])))
            elif event == "snapshot":
                self.snapshot = Snapshot(**{**message, "ttfts_s": tuple(message["ttfts_s"])})
                on_snapshot()
            else:
                self.is_interrupted = message["is_interrupted"]
                return


async def run_processes(job: Job, on_snapshot: Callable[[Snapshot], None]) -> Outcome:
    """Start them, let them begin at the same moment, and bring their records together, in order of due time.

    Raises:
        WorkerError: one ended too early; the others are stopped.
    """
    workers: list[_Worker] = []

    def add_up() -> None:
        total = Snapshot()
        for worker in workers:
            total = total.plus(worker.snapshot)
        on_snapshot(total)

    try:
        for number in range(job.options.processes):
            workers.append(await _start(job.model_copy(update={"worker": number})))
        for worker in workers:
            await worker.hear()  # ready
        start_unix_s = time.time() + START_DELAY_S
        for worker in workers:
            await worker.send(json.dumps({"start_unix_s": start_unix_s}))
        following = asyncio.gather(*(worker.follow(add_up) for worker in workers))
        try:
            await asyncio.shield(following)
        except asyncio.CancelledError:  # Ctrl-C went to every process: each ends its own load and reports
            await following
    finally:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()
            await worker.process.wait()
    records = sorted((record for worker in workers for record in worker.records), key=lambda item: item.intended_s)
    healths = tuple(health for worker in workers for health in worker.healths)
    return Outcome(tuple(records), healths, any(worker.is_interrupted for worker in workers))


async def _start(job: Job) -> _Worker:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "reft_client.bench.worker"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=MAX_LINE_BYTES,
    )
    worker = _Worker(process)
    await worker.send(job.model_dump_json())
    return worker
