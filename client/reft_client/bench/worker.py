"""One process of the load tester: the main one, or one of several that it starts.

As a program (`python -m reft_client.bench.worker`) it talks JSON lines: a `Job` and then the starting moment come in;
`ready`, progress, the records and its own health go out.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from ..connection import Connection
from .load import Load
from .monitor import ClientHealth, Monitor, thin
from .options import BenchOptions
from .plan import Plan
from .records import RequestRecord
from .rows import Row, read_rows
from .sender import Sender
from .vocabulary import Vocabulary

__all__ = ["Job", "Outcome", "Snapshot", "connection_of", "plan_of", "run_job"]

SNAPSHOT_INTERVAL_S = 0.25
MAX_LAGS = 2000


class Job(BaseModel):
    """What one process needs to know."""

    options: BenchOptions
    vocabulary: Vocabulary
    worker: int = 0


@dataclass(frozen=True)
class Snapshot:
    """Where a process stands; `ttfts_s` are those since the last snapshot."""

    num_finished: int = 0
    num_failed: int = 0
    num_running: int = 0
    num_tokens: int = 0
    ttfts_s: tuple[float, ...] = ()

    def plus(self, other: Snapshot) -> Snapshot:
        """Both processes together."""
        return Snapshot(
            self.num_finished + other.num_finished,
            self.num_failed + other.num_failed,
            self.num_running + other.num_running,
            self.num_tokens + other.num_tokens,
            self.ttfts_s + other.ttfts_s,
        )


@dataclass(frozen=True)
class Outcome:
    """What one process, or all of them, saw."""

    records: tuple[RequestRecord, ...]
    healths: tuple[ClientHealth, ...]
    is_interrupted: bool = False


def connection_of(options: BenchOptions) -> Connection:
    """The server, with the key of the environment."""
    return Connection.resolve(options.url, None, options.timeout_s)


def plan_of(job: Job) -> Plan:
    """The whole run's plan, its files read.

    Raises:
        InvalidArgumentError: a file or a mix is wrong.
    """
    options = job.options
    rows: Sequence[Row] = ()
    if options.trace is not None:
        rows = read_rows(options.trace, is_trace=True)
    elif options.prompts is not None:
        rows = read_rows(options.prompts)
    return Plan(options, job.vocabulary, rows)


async def run_job(
    job: Job, plan: Plan, on_snapshot: Callable[[Snapshot], None], started_s: float | None = None
) -> Outcome:
    """Run one process's share.

    Args:
        started_s: the moment when the load begins, on `time.perf_counter`'s clock; None = when this process is ready.
    """
    options = job.options
    sender = Sender(connection_of(options), options.endpoint)
    await sender.warm_up()
    sender.started_s = time.perf_counter() if started_s is None else started_s
    load = Load(plan, sender, options, worker=job.worker, num_workers=options.processes)
    await asyncio.sleep(max(0.0, -sender.now_s()))
    monitor = Monitor()
    async with monitor:
        watcher = asyncio.create_task(_watch(load, sender, on_snapshot))
        try:
            await load.run()
        finally:
            watcher.cancel()
    await sender.close()
    return Outcome(tuple(load.records), (monitor.health,), load.is_interrupted)


async def _watch(load: Load, sender: Sender, on_snapshot: Callable[[Snapshot], None]) -> None:
    num_seen = num_failed = 0
    while True:
        await asyncio.sleep(SNAPSHOT_INTERVAL_S)
        fresh = load.records[num_seen:]
        num_seen += len(fresh)
        num_failed += sum(record.error is not None for record in fresh)
        ttfts = tuple(record.ttft_s for record in fresh if record.ttft_s is not None)
        on_snapshot(Snapshot(num_seen, num_failed, load.num_running, sender.num_tokens_seen, ttfts))


def _say(**message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _report(snapshot: Snapshot) -> None:
    _say(event="snapshot", **vars(snapshot))


def main() -> None:
    """Serve one job from standard input."""
    job = Job.model_validate_json(sys.stdin.readline())
    plan = plan_of(job)
    _say(event="ready")
    line = sys.stdin.readline()
    if not line:  # the main process gave up
        return
    started_s = time.perf_counter() + json.loads(line)["start_unix_s"] - time.time()
    try:
        outcome = asyncio.run(run_job(job, plan, _report, started_s))
    except KeyboardInterrupt:  # before or after the load itself
        outcome = Outcome((), (), is_interrupted=True)
    for record in outcome.records:
        _say(event="record", **record.to_json())
    for health in outcome.healths:
        _say(event="health", cpu_share=health.cpu_share, lags_s=thin(health.lags_s, MAX_LAGS))
    _say(event="end", is_interrupted=outcome.is_interrupted)


if __name__ == "__main__":
    main()
