"""Watches the load tester itself: a client that is short of CPU measures itself instead of the server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .records import RequestRecord
from .statistics import Spread, percentile

__all__ = ["ClientHealth", "Monitor", "client_report", "thin"]

INTERVAL_S = 0.02
MAX_CPU_SHARE = 0.8
MAX_LAG_S = 0.02
MAX_SEND_DELAY_S = 0.02


@dataclass(frozen=True)
class ClientHealth:
    """How busy one process of the load tester was.

    Args:
        cpu_share: of one core, from 0 to 1.
        lags_s: how much later than asked its event loop woke up, sampled all along.
    """

    cpu_share: float
    lags_s: tuple[float, ...]


class Monitor:
    """Measures while its block runs."""

    def __init__(self) -> None:
        self._lags_s: list[float] = []
        self._task: asyncio.Task[None] | None = None
        self._started = (0.0, 0.0)
        self.health = ClientHealth(0.0, ())

    async def __aenter__(self) -> Monitor:
        self._started = (time.perf_counter(), time.process_time())
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        wall_s, cpu_s = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        self.health = ClientHealth(cpu_s / wall_s if wall_s > 0 else 0.0, tuple(self._lags_s))
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self) -> None:
        while True:
            asked_s = time.perf_counter() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self._lags_s.append(max(0.0, time.perf_counter() - asked_s))


def client_report(healths: Sequence[ClientHealth], records: Iterable[RequestRecord]) -> dict[str, object]:
    """The client's own figures and what to think of them.

    `send_delay_s` is from the moment a request was due to the moment it was sent; it is a part of every latency.
    """
    lag = Spread.of(lag for health in healths for lag in health.lags_s)
    delay = Spread.of(record.sent_s - record.intended_s for record in records)
    cpu_share = max((health.cpu_share for health in healths), default=0.0)
    warnings = []
    if cpu_share > MAX_CPU_SHARE:
        warnings.append(f"a process of the load tester used {cpu_share:.0%} of a core")
    if lag.p99 > MAX_LAG_S:
        warnings.append(f"the load tester's event loop lagged by {1e3 * lag.p99:.0f} ms (p99)")
    if delay.p99 > MAX_SEND_DELAY_S:
        warnings.append(f"requests left up to {1e3 * delay.p99:.0f} ms after they were due (p99)")
    return {
        "num_processes": len(healths),
        "cpu_share": round(cpu_share, 4),
        "event_loop_lag_s": lag.to_json(),
        "send_delay_s": delay.to_json(),
        "is_bottleneck": bool(warnings),
        "warnings": warnings,
    }


def thin(values: Sequence[float], limit: int) -> tuple[float, ...]:
    """At most `limit` values with the same percentiles, the largest among them."""
    if len(values) <= limit:
        return tuple(values)
    ordered = sorted(values)
    return tuple(percentile(ordered, 100 * number / (limit - 1)) for number in range(limit))
