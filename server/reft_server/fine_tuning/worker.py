"""The training process: `reft-train`, with the least claim on the machine, and never longer than the server lives.

`python -m reft_server.fine_tuning.worker NICENESS [reft-train's arguments]`; the server holds the other end of stdin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Train; returns `reft-train`'s exit status."""
    threading.Thread(target=_end_with_server, daemon=True).start()
    _yield_to_others(int(arguments[0]))
    # Imported here: the seconds that torch takes to load are at low priority, and end with the server, too.
    from reft_interventions.training.cli import main as train

    return train(arguments[1:])


def _end_with_server() -> None:
    """Block until stdin ends, which the kernel sees to even when the server is killed; then end at once."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _yield_to_others(niceness: int) -> None:
    os.nice(niceness)
    # Linux alone has this file: where memory runs out, this process goes before the server.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
