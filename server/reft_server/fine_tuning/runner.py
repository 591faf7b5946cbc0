"""Runs the jobs that wait: a training process each, watched, and its set stored like an upload."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from reft_client.types import FineTuningError, TrainedIntervention
from reft_interventions.errors import InterventionBaseMismatchError
from reft_server.errors import ReftError, TrainingMemoryError, TrainingProcessError, TrainingTimeError
from reft_server.registry import Registry
from reft_server.tenants.set_book import Origin

from .files import Files
from .jobs import JobFolder, Jobs, next_job
from .process import TrainingProcess
from .progress import ProgressReader, has_finished, results_of
from .records import JobRecord, mend_lines
from .settings import FineTuningSettings

logger = logging.getLogger(__name__)

_POLL_S = 0.2
_MESSAGES: Mapping[str, str] = {
    "data": "Files validated: {num_examples} rows to train on, {num_held_out} held out, {num_too_long} too long.",
    "started": "Training {num_parameters} parameters in {num_steps} steps, {first_step} of them done.",
    "evaluated": "Held-out rows, {label}: loss={loss:.4f}, exact match={exact_match:.3f}.",
}


@dataclass(frozen=True)
class TrainingBase:
    """The base model that the server serves, for a process that loads it again.

    Args:
        model_path: its folder.
        arguments: of `reft-train`, beside `--model`, that make the same weights of it.
    """

    model_path: Path
    model_id: str
    fingerprint: str
    num_layers: int
    arguments: tuple[str, ...] = ()


@dataclass
class _Run:
    """A job that runs now. `stop` is set to end it early, for `reason`."""

    owner: str
    progress: ProgressReader
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    reason: Literal["cancel", "close"] = "close"
    failure: FineTuningError | None = None
    task: asyncio.Task[None] | None = None

    def end(self, reason: Literal["cancel", "close"]) -> None:
        self.reason = reason
        self.stop.set()


class _StoppedError(Exception):
    """The run was told to stop."""


class _FailedError(Exception):
    """The training process said why it can't go on."""

    def __init__(self, error: FineTuningError) -> None:
        super().__init__(error.message)
        self.error = error


class Runner:
    """Starts jobs owner by owner, each owner's in the order of their creation; used from one event loop."""

    def __init__(
        self, settings: FineTuningSettings, base: TrainingBase, files: Files, jobs: Jobs, registry: Registry
    ) -> None:
        self._settings = settings
        self._base = base
        self._files = files
        self._jobs = jobs
        self._registry = registry
        self._runs: dict[str, _Run] = {}
        self._last_starts: dict[str, int] = {}  # owner -> number of its latest start
        self._num_starts = 0
        self._is_closing = False

    def dispatch(self) -> None:
        """Start what waits, as far as there is room."""
        waiting = [record for record in self._jobs.all() if record.status == "queued" and record.id not in self._runs]
        while waiting and len(self._runs) < self._settings.max_running and not self._is_closing:
            record = next_job(waiting, Counter(run.owner for run in self._runs.values()), self._last_starts)
            waiting.remove(record)
            self._num_starts += 1
            self._last_starts[record.owner] = self._num_starts
            path = self._jobs.folder(record.id).progress
            run = _Run(record.owner, ProgressReader(path, path.stat().st_size if path.is_file() else 0))
            self._runs[record.id] = run
            # Not in the context of the request that made room: logs and audit entries would name its tenant.
            run.task = asyncio.create_task(self._run(record, run), context=contextvars.Context())

    async def cancel(self, job_id: str) -> None:
        """End a job that waits or runs; returns when its process is gone. One that is just being stored goes on."""
        run = self._runs.get(job_id)
        if run is None or run.task is None:
            await self._jobs.update(job_id, status="cancelled", finished_at=time.time())
            await self._jobs.note(job_id, "The job was cancelled.")
            await asyncio.to_thread(self._jobs.folder(job_id).clear)
            return
        run.end("cancel")
        await asyncio.shield(run.task)

    def estimated_finish(self, job_id: str) -> float | None:
        """When a job will have trained, Unix seconds; None unless it trains."""
        run = self._runs.get(job_id)
        return run.progress.estimated_finish if run else None

    async def close(self) -> None:
        """End the processes; their jobs go on at the next start."""
        self._is_closing = True
        runs = list(self._runs.values())
        for run in runs:
            run.end("close")
        await asyncio.gather(*(run.task for run in runs if run.task is not None))

    async def _run(self, record: JobRecord, run: _Run) -> None:
        try:
            await self._train_and_store(record, run)
        except _StoppedError:
            if run.reason == "cancel":
                await self._end(record.id, "cancelled", "The job was cancelled.")
            else:
                await self._jobs.update(record.id, status="queued")
        except _FailedError as failed:
            await self.fail(record.id, failed.error)
        except ReftError as error:
            await self.fail(record.id, FineTuningError(code=error.code, message=error.message, param=error.param))
        except Exception:
            logger.exception("fine_tuning_job_broke job=%s", record.id)
            message = f"The server failed on this job; its log tells more under {record.id}"
            await self.fail(record.id, FineTuningError(code="internal_error", message=message))
        finally:
            del self._runs[record.id]
            self.dispatch()

    async def _train_and_store(self, record: JobRecord, run: _Run) -> None:
        folder = self._jobs.folder(record.id)
        await self._jobs.update(record.id, status="running")
        logger.info("fine_tuning_started job=%s restarts=%d", record.id, record.num_restarts)
        if not (folder.output.is_file() and await asyncio.to_thread(has_finished, folder.progress)):
            await self._train(record, run, folder)
        await self._store(record, folder)

    async def _train(self, record: JobRecord, run: _Run, folder: JobFolder) -> None:
        await asyncio.to_thread(mend_lines, folder.progress)
        arguments = await asyncio.to_thread(self._write_arguments, record, folder)
        process = await asyncio.to_thread(
            TrainingProcess.start,
            arguments,
            self._files.folder,
            folder.stderr,
            num_threads=self._settings.num_threads,
            niceness=self._settings.niceness,
        )
        try:
            await self._watch(record, run, process)
        finally:
            await process.end()
        await self._note_progress(record, run)
        if run.failure is not None:
            raise _FailedError(run.failure)
        if process.status != 0:
            raise TrainingProcessError(f"The training process ended with {process.describe_end()}")

    async def _watch(self, record: JobRecord, run: _Run, process: TrainingProcess) -> None:
        deadline = time.monotonic() + self._settings.max_time_s
        while process.status is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(run.stop.wait(), _POLL_S)
            await self._note_progress(record, run)
            if run.stop.is_set():
                raise _StoppedError
            if process.rss_bytes > self._settings.max_memory_bytes:
                raise TrainingMemoryError(
                    f"Training took more than {self._settings.max_memory_bytes} bytes of memory; lower batch_size, "
                    "max_length or prefix_cache_mb"
                )
            if time.monotonic() > deadline:
                raise TrainingTimeError(f"Training took longer than {self._settings.max_time_s:g} s")

    async def _note_progress(self, record: JobRecord, run: _Run) -> None:
        for event in await asyncio.to_thread(run.progress.read_new):
            match event["event"]:
                case "loaded" if event["fingerprint"] != self._base.fingerprint:
                    raise InterventionBaseMismatchError(
                        "The training process loaded other weights than the server serves; was the model's folder "
                        "changed?"
                    )
                case "data" | "started" | "evaluated":
                    await self._jobs.note(record.id, _MESSAGES[event["event"]].format(**event), data=_numbers(event))
                case "stepped" if run.progress.is_shown(event["step"]):
                    numbers = {
                        "step": event["step"],
                        "train_loss": event["loss"],
                        "total_steps": run.progress.num_steps,
                    }
                    message = f"Step {event['step']}/{run.progress.num_steps}: training loss={event['loss']:.4f}"
                    await self._jobs.note(record.id, message, data=numbers, is_metrics=True)
                case "failed":
                    run.failure = _job_error(event, record)

    async def _store(self, record: JobRecord, folder: JobFolder) -> None:
        """Store the set as an upload is, then the results, then the job's end.

        After a crash in between it is done again: the store gives the same content the same version.
        """
        upload = self._registry.new_upload_path()
        try:
            await asyncio.to_thread(shutil.copyfile, folder.output, upload)
            stored, _ = await self._registry.add(
                upload,
                record.name,
                tenant=record.owner,
                origin=Origin("fine_tuning", {"job": record.id, "training_file": record.training_file}),
            )
        finally:
            upload.unlink(missing_ok=True)
        content, num_tokens = await asyncio.to_thread(results_of, folder.progress)
        result = await self._files.add_result(content, "step_metrics.csv", record.owner)
        trained = TrainedIntervention(name=stored.name, version=stored.version, content_hash=stored.content_hash)
        await self._jobs.note(record.id, f"New fine-tuned model created: {stored.reference}", data=trained.model_dump())
        await self._end(
            record.id,
            "succeeded",
            "The job has successfully completed",
            intervention=trained,
            result_file=result.id,
            trained_tokens=num_tokens,
        )

    def _write_arguments(self, record: JobRecord, folder: JobFolder) -> list[str]:
        """`reft-train`'s. Data files are named relative to their folder, which no message needs to tell."""
        folder.options.write_text(json.dumps(record.options), encoding="utf-8")
        base, files = self._base, self._files
        arguments = [
            *("--model", str(base.model_path), "--model-id", base.model_id, "--device", self._settings.device),
            *("--data", files.path(files.get(record.training_file, record.owner)).name),
            *("--output", str(folder.output), "--options", str(folder.options)),
            *("--events", str(folder.progress), "--name", record.name),
            *base.arguments,
        ]
        if record.validation_file is not None:
            arguments += ["--eval-data", files.path(files.get(record.validation_file, record.owner)).name]
        if record.recipe is not None:
            arguments += ["--recipe", record.recipe]
        if folder.checkpoint.is_file():
            arguments.append("--resume")
        return arguments

    async def fail(self, job_id: str, error: FineTuningError) -> None:
        """End a job with an error."""
        logger.warning("fine_tuning_failed job=%s code=%s", job_id, error.code)
        await self._end(job_id, "failed", error.message, error=error)

    async def _end(
        self, job_id: str, status: Literal["succeeded", "failed", "cancelled"], message: str, **changes: Any
    ) -> None:
        """Note it first: whoever sees the status sees the last event too."""
        await self._jobs.note(job_id, message, level="error" if status == "failed" else "info")
        try:
            await self._jobs.update(job_id, status=status, finished_at=time.time(), **changes)
        except ReftError as error:
            logger.error("fine_tuning_record_lost job=%s reason=%s", job_id, error.message)
            return
        await asyncio.to_thread(self._jobs.folder(job_id).clear)
        logger.info("fine_tuning_ended job=%s status=%s", job_id, status)


def _numbers(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("event", "time")}


def _job_error(event: Mapping[str, Any], record: JobRecord) -> FineTuningError:
    """What the training process gave up for, in the words of the request."""
    code, message, param = event["code"], event["message"], event["param"]
    if param == "data":
        is_validation = record.validation_file is not None and record.validation_file in message
        param = "validation_file" if is_validation else "training_file"
        code = "invalid_training_file"
    elif param in record.options:
        param = f"method.reft.hyperparameters.{param}"
    return FineTuningError(code=code, message=message, param=param)
