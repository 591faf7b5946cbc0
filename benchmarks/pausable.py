"""A process that can be stopped while another one is measured."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any


class PausableProcess:
    """A process and its children, in a process group of their own.

    Args:
        command: starts it.
        options: passed to `subprocess.Popen`.
    """

    def __init__(self, command: list[str], **options: Any) -> None:
        self._process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        """Stop the group where it is: idle servers may spin."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the group go on, or what is left of it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """Ask the process to end; after 30 s, end what is left of its group."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(timeout=30)
