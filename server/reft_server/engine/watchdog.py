"""A thread that notices when a step of the engine hangs."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable

logger = logging.getLogger(__name__)


class Watchdog:
    """Watches one piece of work at a time: `begin` before it, `end` after it, both from the worker's thread.

    Args:
        limit_s: how long the work may take, seconds.
        on_hang: called once per hang, in the watchdog's own thread.
    """

    def __init__(self, limit_s: float, on_hang: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._on_hang = on_hang
        self._begun_at: float | None = None
        self._worker_id: int | None = None
        self._is_stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_hung(self) -> bool:
        """The work that runs now has taken too long; False again as soon as it ends."""
        begun_at = self._begun_at
        return begun_at is not None and time.monotonic() - begun_at > self._limit_s

    def begin(self) -> None:
        """Work starts."""
        self._worker_id = threading.get_ident()
        self._begun_at = time.monotonic()

    def end(self) -> None:
        """Work has ended, well or not."""
        self._begun_at = None

    def start(self) -> None:
        """Watch, in a daemon thread."""
        self._thread = threading.Thread(target=self._watch, name="reft-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._is_stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        reported: float | None = None
        while not self._is_stopped.wait(min(self._limit_s / 4, 1.0)):
            begun_at = self._begun_at
            if self.is_hung and begun_at != reported:
                reported = begun_at
                logger.error("step hangs limit_s=%g, the engine's thread is at:\n%s", self._limit_s, self._where())
                self._on_hang()

    def _where(self) -> str:
        frame = sys._current_frames().get(self._worker_id or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(it has ended)"
