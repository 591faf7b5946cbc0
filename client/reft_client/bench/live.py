"""What one sees while a run is under way."""

from __future__ import annotations

import time
from collections import deque
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from .options import BenchOptions
from .statistics import Spread
from .tables import format_s
from .worker import Snapshot

__all__ = ["LiveView"]

WINDOW_S = 5.0
NUM_RECENT = 200


class LiveView:
    """A bar, and below it the figures of the last seconds; on standard error, silent where that is no terminal."""

    def __init__(self, stream: TextIO, *, is_quiet: bool) -> None:
        console = Console(file=stream)
        self._is_shown = console.is_terminal and not is_quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task("starting", total=None)
        self._live = Live(self._progress, console=console, transient=True, refresh_per_second=4)
        self._num_sessions: int | None = None
        self._end_s: float | None = None
        self._started_s = 0.0
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self._history: deque[tuple[float, Snapshot]] = deque()

    def __enter__(self) -> LiveView:
        if self._is_shown:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def learning(self, num_done: int, num_all: int) -> None:
        """Show how many references are learned."""
        self._progress.update(self._task, description="references", completed=num_done, total=num_all)

    def begin(self, options: BenchOptions, num_sessions: int | None) -> None:
        """A load starts.

        Args:
            num_sessions: what it ends with; None = only its duration bounds it.
        """
        self._num_sessions = num_sessions
        self._end_s = None if options.duration_s is None else options.warmup_s + options.duration_s
        self._started_s = time.perf_counter()
        self._recent.clear()
        self._history.clear()
        rate = "" if options.rate is None else f" at {options.rate[1]:.3g} requests/s"
        self._progress.reset(self._task, description=f"load{rate}", total=1.0)

    def show(self, snapshot: Snapshot) -> None:
        """Take the newest numbers."""
        if not self._is_shown:
            return
        now_s = time.perf_counter() - self._started_s
        self._recent.extend(snapshot.ttfts_s)
        self._history.append((now_s, snapshot))
        while now_s - self._history[0][0] > WINDOW_S and len(self._history) > 2:
            self._history.popleft()
        self._progress.update(self._task, completed=self._share(now_s, snapshot))
        self._live.update(Group(self._progress, self._figures(snapshot)))

    def _share(self, now_s: float, snapshot: Snapshot) -> float:
        shares = [snapshot.num_finished / self._num_sessions] if self._num_sessions else []
        if self._end_s is not None:
            shares.append(now_s / self._end_s)
        return min(1.0, max(shares, default=0.0))

    def _figures(self, snapshot: Snapshot) -> Table:
        (then_s, then), (now_s, _) = self._history[0], self._history[-1]
        width_s = max(now_s - then_s, 1e-9)
        ttft = Spread.of(self._recent)
        table = Table(box=None, pad_edge=False, header_style="bold")
        cells = {
            "done": str(snapshot.num_finished),
            "failed": f"[red]{snapshot.num_failed}[/red]" if snapshot.num_failed else "0",
            "running": str(snapshot.num_running),
            "requests/s": f"{(snapshot.num_finished - then.num_finished) / width_s:.1f}",
            "tokens/s": f"{(snapshot.num_tokens - then.num_tokens) / width_s:.0f}",
            "TTFT p50": format_s(ttft.p50),
            "p99": format_s(ttft.p99),
        }
        for name in cells:
            table.add_column(name, justify="right")
        table.add_row(*cells.values())
        return table
