"""The loop of a worker process; it imports nothing of ours, so that workers of any environment can use it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

Run = Callable[[list[list[int]], int, list["str | None"]], None]


def serve_jobs(version: str, run: Run) -> None:
    """Say that the model is loaded; then read JSON lines `{"prompts", "max_tokens", "adapters"}` and time each."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    _write(out, {"version": version})
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        run(job["prompts"], job["max_tokens"], job["adapters"])
        _write(out, {"seconds": time.perf_counter() - started})


def _write(out: object, answer: dict[str, object]) -> None:
    print(json.dumps(answer), file=out, flush=True)  # type: ignore[call-overload]
