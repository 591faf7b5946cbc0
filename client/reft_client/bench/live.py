"""What one sees while a run is under way."""

from __future__ import annotations

import time
from collections import deque
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from .options import BenchOptions
from .statistics import Spread
from .tables import format_s
from .worker import Snapshot

__all__ = ["LiveView"]

WINDOW_S = 5.0
NUM_RECENT = 200


class LiveView:
    """A bar with the figures of the last seconds, on standard error; silent where that is no terminal.

    Args:
        num_sessions: what the run ends with; None = only its duration bounds it.
    """

    def __init__(self, stream: TextIO, options: BenchOptions, num_sessions: int | None, *, is_quiet: bool) -> None:
        console = Console(file=stream)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        fields = TextColumn("{task.fields[figures]}")
        self._is_shown = console.is_terminal and not is_quiet
        self._progress = Progress(*columns, fields, console=console, transient=True, disable=not self._is_shown)
        self._num_sessions = num_sessions
        self._end_s = None if options.duration_s is None else options.warmup_s + options.duration_s
        self._started_s = 0.0
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._history: deque[tuple[float, Snapshot]] = deque()
        self._task = self._progress.add_task("starting", total=None, figures="")

    def __enter__(self) -> LiveView:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def learning(self, num_done: int, num_all: int) -> None:
        """Show how many references are learned."""
        self._progress.update(self._task, description="references", completed=num_done, total=num_all, figures="")

    def begin(self) -> None:
        """The load starts."""
        self._started_s = time.perf_counter()
        self._progress.update(self._task, description="load", completed=0, total=1.0)

    def show(self, snapshot: Snapshot) -> None:
        """Take the newest numbers."""
        if not self._is_shown:
            return
        now_s = time.perf_counter() - self._started_s
        self._recent.extend(snapshot.ttfts_s)
        self._history.append((now_s, snapshot))
        while now_s - self._history[0][0] > WINDOW_S and len(self._history) > 2:
            self._history.popleft()
        self._progress.update(self._task, completed=self._share(now_s, snapshot), figures=self._figures(snapshot))

    def _share(self, now_s: float, snapshot: Snapshot) -> float:
        shares = [snapshot.num_finished / self._num_sessions] if self._num_sessions else []
        if self._end_s is not None:
            shares.append(now_s / self._end_s)
        return min(1.0, max(shares, default=0.0))

    def _figures(self, snapshot: Snapshot) -> str:
        (then_s, then), (now_s, _) = self._history[0], self._history[-1]
        width_s = max(now_s - then_s, 1e-9)
        tokens_per_s = (snapshot.num_tokens - then.num_tokens) / width_s
        requests_per_s = (snapshot.num_finished - then.num_finished) / width_s
        ttft = Spread.of(self._recent)
        failed = f", [red]{snapshot.num_failed} failed[/red]" if snapshot.num_failed else ""
        return (
            f"{snapshot.num_finished} done{failed}, {snapshot.num_running} running, {requests_per_s:.1f} requests/s, "
            f"{tokens_per_s:.0f} tokens/s, TTFT {format_s(ttft.p50)} (p99 {format_s(ttft.p99)})"
        )
