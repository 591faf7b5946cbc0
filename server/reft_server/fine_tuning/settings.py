"""The fine-tuning surface's settings, built once by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class FineTuningSettings:
    """What jobs may use, and how many there may be.

    Args:
        enabled: serve `/v1/files` and `/v1/fine_tuning`.
        dir: folder of files and jobs, one server's at a time; None = `fine-tuning` in the store's folder.
        device: where jobs train.
        num_threads: threads of one training process.
        niceness: of a training process; 19 leaves it what serving does not use.
        max_running: jobs that train at once.
        max_queued: jobs of one owner that may wait; one more is refused.
        max_jobs: jobs of one owner that are kept; the oldest that have ended make room.
        max_memory_bytes: resident memory of one training process; more ends the job.
        max_time_s: of one training process, seconds; more ends the job.
        max_steps: optimizer steps of one job.
        max_restarts: restarts of the server that a running job survives.
        checkpoint_steps: optimizer steps between checkpoints.
        max_file_bytes: largest file.
        max_files: files that one owner may have at a time.
        max_total_bytes: their size together.
    """

    enabled: bool = True
    dir: Path | None = None
    device: str = "cpu"
    num_threads: int = 1
    niceness: int = 19
    max_running: int = 1
    max_queued: int = 16
    max_jobs: int = 1000
    max_memory_bytes: int = 4 << 30
    max_time_s: float = 86_400.0
    max_steps: int = 100_000
    max_restarts: int = 3
    checkpoint_steps: int = 50
    max_file_bytes: int = 64 << 20
    max_files: int = 1000
    max_total_bytes: int = 1 << 30
