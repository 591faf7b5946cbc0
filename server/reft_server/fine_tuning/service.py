"""Files and jobs as the API sees them: what may be asked for, and what survives a restart."""

from __future__ import annotations

import asyncio
import fcntl
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from reft_client.types import FineTuningError, FineTuningJobRequest
from reft_interventions.store import durable
from reft_server.errors import (
    FileInUseError,
    FineTuningJobFinishedError,
    FineTuningQueueFullError,
    FineTuningUnavailableError,
    InvalidRequestError,
    TrainingProcessError,
)
from reft_server.registry import Registry

from .files import Files
from .jobs import Jobs
from .method import check_size, plan_training
from .records import FileRecord, JobRecord, new_id
from .runner import Runner, TrainingBase
from .settings import FineTuningSettings

logger = logging.getLogger(__name__)

_QUEUE_RETRY_S = 60.0


class FineTuning:
    """The whole surface, over one folder that no other server uses; used from one event loop.

    Every method that takes an `owner` sees that owner's files and jobs only.

    Args:
        folder: created by `start`.
        base: what jobs train on.
        registry: where their sets are stored.
    """

    def __init__(self, folder: Path, settings: FineTuningSettings, base: TrainingBase, registry: Registry) -> None:
        self.settings = settings
        self._folder = folder
        self._base = base
        self._files = Files(folder / "files", settings)
        self._jobs = Jobs(folder / "jobs")
        self._runner = Runner(settings, base, self._files, self._jobs, registry)
        self._lock: BinaryIO | None = None
        self._reason = "it has not started"

    @property
    def files(self) -> Files:
        """The files.

        Raises:
            FineTuningUnavailableError: the folder is another server's, or can't be used.
        """
        self._check_open()
        return self._files

    @property
    def jobs(self) -> Jobs:
        """The jobs. Raises as `files` does."""
        self._check_open()
        return self._jobs

    async def start(self) -> None:
        """Read the folder, and go on with what a stop or a crash cut off. A folder that can't be used is logged."""
        try:
            await asyncio.to_thread(self._open)
        except OSError as error:
            self._reason = (
                "another server uses its folder" if isinstance(error, BlockingIOError) else "its folder can't be used"
            )
            logger.warning("fine_tuning_unavailable folder=%s reason=%s", self._folder, error.strerror)
            return
        for record in self._jobs.all():
            if record.has_ended:
                self._jobs.folder(record.id).clear()
            elif record.status == "running":
                await self._take_up(record)
        self._runner.dispatch()

    async def close(self) -> None:
        """End the training processes; their jobs go on at the next start."""
        await self._runner.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            self._reason = "the server stops"

    async def create_job(self, request: FineTuningJobRequest, model: str, owner: str = "") -> JobRecord:
        """Check what is asked for, and queue it.

        Args:
            model: what the answer calls the base model.

        Raises:
            InvalidRequestError: a field is wrong; `param` names it.
            InvalidInterventionNameError: the set can't have this name.
            UnknownFileError: there is no such file.
            FineTuningQueueFullError: too many jobs wait.
            StoreError: the disk failed.
        """
        jobs, job_id = self.jobs, new_id("ftjob")
        plan = plan_training(request, job_id, self.settings)
        await self._make_room(owner)
        data = self._data(request.training_file, "training_file", owner)
        if request.validation_file is not None:
            self._data(request.validation_file, "validation_file", owner)
        check_size(plan.options, data.num_rows, self._base.num_layers, self.settings)
        num_queued = sum(record.status == "queued" for record in jobs.list(owner))
        if num_queued >= self.settings.max_queued + self._num_free:
            raise FineTuningQueueFullError(f"{num_queued} jobs wait already", retry_after_s=_QUEUE_RETRY_S)
        record = JobRecord(
            id=job_id,
            owner=owner,
            model=model,
            name=plan.name,
            training_file=request.training_file,
            validation_file=request.validation_file,
            recipe=plan.recipe,
            method=plan.method,
            options=plan.options.as_dict(),
            metadata=request.metadata,
        )
        await jobs.create(record)
        await jobs.note(job_id, f"Created fine-tuning job: {job_id}")
        logger.info("fine_tuning_created job=%s rows=%d", job_id, data.num_rows)
        self._runner.dispatch()
        return record

    async def cancel_job(self, job_id: str, owner: str = "") -> JobRecord:
        """End a job that waits or runs; its process is gone when this returns.

        Raises:
            FineTuningJobNotFoundError: there is none with this id.
            FineTuningJobFinishedError: it has ended already.
        """
        record = self.jobs.get(job_id, owner)
        if not record.has_ended:
            await self._runner.cancel(job_id)
            record = self.jobs.get(job_id, owner)
            if record.status == "cancelled":
                return record
        raise FineTuningJobFinishedError(f"The job {job_id} has {record.status} already")

    async def forget(self, owner: str) -> None:
        """End and remove all jobs and files of an owner.

        Raises:
            FineTuningUnavailableError: the folder is another server's, or can't be used.
            StoreError: the disk failed; what is left goes when it is called again.
        """
        for record in self.jobs.list(owner):
            if not record.has_ended:
                await self._runner.cancel(record.id)
            await self._jobs.remove(record.id)
        for file in self.files.list(owner):
            await self._files.delete(file)

    async def delete_file(self, file_id: str, owner: str = "") -> FileRecord:
        """Remove a file.

        Raises:
            UnknownFileError: there is none with this id.
            FileInUseError: a job that has not ended needs it.
        """
        record = self.files.get(file_id, owner)
        for job in self._jobs.all():
            if not job.has_ended and file_id in (job.training_file, job.validation_file):
                raise FileInUseError(f"The job {job.id} needs this file; wait for it, or cancel it", param="file_id")
        await self._files.delete(record)
        return record

    def estimated_finish(self, job_id: str) -> float | None:
        """When a job will have trained, Unix seconds; None unless it trains."""
        return self._runner.estimated_finish(job_id)

    def job_counts(self) -> Mapping[str, int]:
        """How many jobs have each status, for the metrics."""
        return self._jobs.counts()

    @property
    def _num_free(self) -> int:
        return max(0, self.settings.max_running - self._jobs.counts().get("running", 0))

    def _check_open(self) -> None:
        if self._lock is None:
            raise FineTuningUnavailableError(f"Fine-tuning is not available: {self._reason}")

    def _open(self) -> None:
        durable.make_folder(self._folder)
        lock = (self._folder / "server.lock").open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._files.open()
            self._jobs.open()
        except OSError:
            lock.close()
            raise
        self._lock = lock

    async def _take_up(self, record: JobRecord) -> None:
        """Queue a job again that the server's end cut off, unless that happened too often."""
        if record.num_restarts >= self.settings.max_restarts:
            error = TrainingProcessError(f"The server ended {record.num_restarts + 1} times while this job ran")
            await self._runner.fail(record.id, FineTuningError(code=error.code, message=error.message))
            return
        await self._jobs.update(record.id, status="queued", num_restarts=record.num_restarts + 1)
        await self._jobs.note(
            record.id, "The server restarted; the job goes on from its last checkpoint.", level="warn"
        )

    async def _make_room(self, owner: str) -> None:
        """Forget the owner's oldest jobs that have ended, with their results, where there are too many."""
        kept = self._jobs.list(owner)
        doomed = [record for record in reversed(kept) if record.has_ended]
        for record in doomed[: max(0, len(kept) + 1 - self.settings.max_jobs)]:
            for result in self._files.list(record.owner):
                if result.id == record.result_file:
                    await self._files.delete(result)
            await self._jobs.remove(record.id)

    def _data(self, file_id: str, param: str, owner: str) -> FileRecord:
        record = self._files.get(file_id, owner, param=param)
        if record.purpose != "fine-tune":
            raise InvalidRequestError(f"{param} holds results, not data", param=param)
        return record
