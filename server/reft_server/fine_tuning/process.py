"""A training process as its server sees it: started, measured, ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

_STDERR_BYTES = 16 << 10
_EXCEPTION_LINE = re.compile(r"^(?:\w+\.)*(\w+(?:Error|Exception|Interrupt|Exit))\b", re.MULTILINE)


class TrainingProcess:
    """One `worker`. It ends when this object's pipe to it is closed, by whatever end of the server."""

    def __init__(self, process: subprocess.Popen[bytes], stderr: Path) -> None:
        self._process = process
        self._stderr = stderr

    @classmethod
    def start(cls, arguments: Sequence[str], folder: Path, stderr: Path, *, num_threads: int, niceness: int) -> Self:
        """Start training.

        Args:
            arguments: `reft-train`'s.
            folder: where it runs; paths below it stay relative in its messages.
            stderr: takes what it writes there.

        Raises:
            OSError: the system refuses another process.
        """
        with stderr.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "reft_server.fine_tuning.worker", str(niceness), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                cwd=folder,
                env=_environment(num_threads),
                # A group of its own, to be ended with what it may start. Not a session: the kernel may schedule
                # sessions as equals, whatever their niceness.
                process_group=0,
            )
        return cls(process, stderr)

    @property
    def status(self) -> int | None:
        """The exit status; negative = the signal that ended it; None while it runs."""
        return self._process.poll()

    @property
    def rss_bytes(self) -> int:
        """Resident memory now; 0 where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/statm").read_text(encoding="ascii").split()
        except OSError:
            return 0
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0

    async def end(self) -> None:
        """Kill it, with what it started, and wait until it is gone."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        await asyncio.to_thread(self._process.wait)
        self._bound_stderr()

    def describe_end(self) -> str:
        """How it ended, for people. Of what it wrote only the type of an exception: the rest may quote the data."""
        status = self._process.returncode
        if status < 0:
            return f"signal {signal.Signals(-status).name}"
        found = _EXCEPTION_LINE.findall(self._stderr.read_text(encoding="utf-8", errors="replace"))
        return f"status {status}" + (f", {found[-1]}" if found else "")

    def _bound_stderr(self) -> None:
        """Keep the end of what it wrote: that is where a traceback names its cause."""
        if self._stderr.stat().st_size > _STDERR_BYTES:
            self._stderr.write_bytes(self._stderr.read_bytes()[-_STDERR_BYTES:])


def _environment(num_threads: int) -> dict[str, str]:
    """The server's without its settings, which may hold secrets; no network, and few threads."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("REFT_")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(num_threads))
    # Threads of OpenMP that wait must sleep: spinning takes a core from serving.
    return kept | threads | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "PASSIVE"}
