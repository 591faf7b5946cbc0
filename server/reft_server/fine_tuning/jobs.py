"""The jobs on disk: a folder each, with the record, the events, and what training writes."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from reft_client.types import FineTuningEvent
from reft_interventions.errors import StoreError
from reft_interventions.store import durable
from reft_interventions.training.checkpoint import checkpoint_path
from reft_server.errors import FineTuningJobNotFoundError

from .records import JobRecord, mend_lines, new_id, read_record, write_record

logger = logging.getLogger(__name__)


class JobFolder:
    """The paths of one job."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.record = root / "job.json"
        self.events = root / "events.jsonl"
        self.options = root / "options.json"
        self.progress = root / "progress.jsonl"
        self.output = root / "output.safetensors"
        self.checkpoint = checkpoint_path(self.output)
        self.stderr = root / "stderr.txt"

    def clear(self) -> None:
        """Remove what a job that has ended needs no more."""
        for path in (self.output, self.checkpoint, self.progress):
            path.unlink(missing_ok=True)


class Jobs:
    """The jobs in one folder; used from one event loop. Memory is ahead of the disk while a write is under way."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records: dict[str, JobRecord] = {}
        self._lock = asyncio.Lock()

    def open(self) -> None:
        """Read the records.

        Raises:
            OSError: the folder can't be used.
        """
        durable.make_folder(self._folder)
        for root in sorted(self._folder.iterdir()):
            record = read_record(JobFolder(root).record, JobRecord) if root.is_dir() else None
            if record is not None and record.id == root.name:
                self._records[record.id] = record
                mend_lines(JobFolder(root).events)

    def folder(self, job_id: str) -> JobFolder:
        """The paths of a job."""
        return JobFolder(self._folder / job_id)

    def get(self, job_id: str, owner: str = "") -> JobRecord:
        """The record of a job.

        Raises:
            FineTuningJobNotFoundError: there is none with this id.
        """
        record = self._records.get(job_id)
        if record is None or record.owner != owner:
            raise FineTuningJobNotFoundError(f"There is no job {job_id[:64]!r}", param="fine_tuning_job_id")
        return record

    def all(self) -> list[JobRecord]:
        """Every owner's jobs, newest first."""
        return sorted(self._records.values(), key=lambda record: (record.created_at, record.id), reverse=True)

    def list(self, owner: str = "") -> list[JobRecord]:
        """The jobs of one owner, newest first."""
        return [record for record in self.all() if record.owner == owner]

    def counts(self) -> Mapping[str, int]:
        """How many jobs have each status."""
        return Counter(record.status for record in self._records.values())

    async def create(self, record: JobRecord) -> None:
        """Keep a new job.

        Raises:
            StoreError: the disk failed.
        """
        self._records[record.id] = record
        try:
            await asyncio.to_thread(self._make_folder, record)
        except BaseException:
            del self._records[record.id]
            raise

    async def update(self, job_id: str, **changes: Any) -> JobRecord:
        """Change a record, in memory at once and then durably.

        Raises:
            StoreError: the disk failed.
        """
        record = self._records[job_id].model_copy(update=changes)
        self._records[job_id] = record
        async with self._lock:
            # The newest state, which another update may have made while this one waited.
            await asyncio.to_thread(write_record, self.folder(job_id).record, self._records[job_id])
        return record

    async def remove(self, job_id: str) -> None:
        """Forget a job that has ended."""
        del self._records[job_id]
        # The record first: a folder without one is no job.
        root = self.folder(job_id)
        await asyncio.to_thread(root.record.unlink, missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, root.root, ignore_errors=True)

    async def note(
        self,
        job_id: str,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        data: Mapping[str, Any] | None = None,
        is_metrics: bool = False,
    ) -> None:
        """Append an event. One that the disk refuses is lost, with a line in the log: the job goes on."""
        event = FineTuningEvent(
            id=new_id("ftevent"),
            created_at=int(time.time()),
            level=level,
            message=message,
            type="metrics" if is_metrics else "message",
            data=dict(data or {}),
        )
        try:
            await asyncio.to_thread(_append, self.folder(job_id).events, event.model_dump_json())
        except OSError as error:
            logger.error("fine_tuning_event_lost job=%s reason=%s", job_id, error.strerror)

    def events(self, job_id: str) -> Sequence[FineTuningEvent]:
        """What happened to a job, newest first."""
        path = self.folder(job_id).events
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return [event for line in reversed(lines) if (event := _parse(line)) is not None]

    def _make_folder(self, record: JobRecord) -> None:
        try:
            durable.make_folder(self.folder(record.id).root)
        except OSError as error:
            raise StoreError(f"The job can't be kept: {error.strerror}") from error
        write_record(self.folder(record.id).record, record)


def next_job(waiting: Sequence[JobRecord], num_running: Counter[str], last_starts: Mapping[str, int]) -> JobRecord:
    """The next to start: of the owner with the fewest running, then of whom none was started for longest, the oldest.

    So a tenant's long queue delays nobody else's first job by more than one job.
    """
    return min(
        waiting,
        key=lambda job: (num_running[job.owner], last_starts.get(job.owner, 0), job.created_at, job.id),
    )


def _append(path: Path, line: str) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def _parse(line: str) -> FineTuningEvent | None:
    try:
        return FineTuningEvent.model_validate_json(line)
    except ValidationError:
        return None  # cut off by a crash
