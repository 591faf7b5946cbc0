"""What ends a job early, and what a stop or a crash of the server leaves of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedModel

from reft_interventions import InterventionSet, save
from reft_interventions.errors import InterventionNotFoundError, InterventionSelfTestError
from reft_server.errors import FineTuningJobFinishedError, FineTuningUnavailableError
from reft_server.fine_tuning.records import JobRecord
from reft_server.fine_tuning.service import FineTuning
from tests.unit.server.fine_tuning.conftest import Lab, ended, job_request, reached, run, until, upload

ROOT = Path(__file__).parents[4]
LONG = {"epochs": 2000}


def trainers() -> set[int]:
    """The training processes that this process started and that live."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = {int(pid) for path in children for pid in path.read_text().split()}
    return {pid for pid in pids if is_trainer(pid)}


def is_trainer(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return b"fine_tuning.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


async def start(tuning: FineTuning) -> JobRecord:
    """A job that goes on for long, once it has a checkpoint."""
    record = await tuning.create_job(job_request(await upload(tuning), LONG), "acme/tiny")
    await reached(tuning, record.id, (tuning.jobs.folder(record.id).root / "output.checkpoint.safetensors").is_file)
    return record


async def start_soon(tuning: FineTuning) -> JobRecord:
    """A job whose process has just begun."""
    record = await tuning.create_job(job_request(await upload(tuning), LONG), "acme/tiny")
    await reached(tuning, record.id, lambda: bool(trainers()))
    return record


def rewrite(path: Path, **changes: object) -> None:
    """Change a record behind the service's back, to what a crash would have left."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_job_goes_on_from_its_checkpoint_after_a_stop_and_can_be_cancelled(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            record = await start(tuning)
        assert not trainers()
        async with lab.running() as (tuning, registry):
            events = tuning.jobs.events
            await reached(
                tuning, record.id, lambda: any(event.data.get("first_step", 0) >= 2 for event in events(record.id))
            )
            assert tuning.jobs.get(record.id).num_restarts == 0, "a stop in order does not count"
            assert (await tuning.cancel_job(record.id)).status == "cancelled"
            assert not trainers()
            assert not list(tuning.jobs.folder(record.id).root.glob("*.safetensors"))
            assert events(record.id)[0].message == "The job was cancelled."
            with pytest.raises(InterventionNotFoundError):
                registry.get("echo")
            with pytest.raises(FineTuningJobFinishedError, match="has cancelled already"):
                await tuning.cancel_job(record.id)
            await tuning.delete_file(record.training_file)

    run(scenario())


def test_trainer_ends_with_a_server_that_is_killed_and_its_job_goes_on(lab: Lab) -> None:
    module = "tests.unit.server.fine_tuning.crashing_server"
    command = [sys.executable, "-m", module, str(lab.root), str(lab.base.model_path), lab.base.fingerprint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        assert server.stdout is not None
        job_id, trainer = server.stdout.readline().split()
        assert is_trainer(int(trainer))
        server.kill()

    async def scenario() -> None:
        await until(lambda: not is_trainer(int(trainer)), timeout_s=10)
        async with lab.running() as (tuning, _):
            assert tuning.jobs.get(job_id).num_restarts == 1
            await reached(tuning, job_id, lambda: tuning.jobs.get(job_id).status == "running")
            await tuning.cancel_job(job_id)

    run(scenario())


def test_job_that_outlives_too_many_crashes_fails(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            record = await start_soon(tuning)
            path = tuning.jobs.folder(record.id).record
        rewrite(path, status="running", num_restarts=3)
        async with lab.running() as (tuning, _):
            failed = tuning.jobs.get(record.id)
            assert failed.status == "failed"
            assert failed.error is not None
            assert failed.error.code == "training_process_failed"

    run(scenario())


@pytest.mark.parametrize("is_refused", [False, True])
def test_set_that_was_trained_before_a_crash_is_stored_without_training_again(
    lab: Lab, tiny_model: Callable[..., PreTrainedModel], make_set: Callable[..., InterventionSet], is_refused: bool
) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            record = await start_soon(tuning)
            folder = tuning.jobs.folder(record.id)
        trained = make_set(tiny_model("llama", vocab_size=lab.vocab_size))
        save(trained, folder.output)
        folder.progress.write_text(
            '{"event": "stepped", "step": 1, "loss": 2.0, "num_tokens": 5, "ti\n{"event": "finished"}'
        )
        rewrite(folder.record, status="running")
        if is_refused:
            lab.engine.failure = InterventionSelfTestError("the edit does nothing")
        async with lab.running() as (tuning, registry):
            record = await ended(tuning, record.id)
            if is_refused:
                assert record.error is not None
                assert record.error.code == "intervention_self_test_failed"
                with pytest.raises(InterventionNotFoundError):
                    registry.get("echo")
            else:
                assert record.intervention is not None
                assert record.intervention.content_hash == trained.content_hash == registry.get("echo").content_hash

    run(scenario())


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"max_memory_bytes": 1 << 20}, "training_out_of_memory"), ({"max_time_s": 0.1}, "training_time_limit")],
)
def test_job_that_takes_too_much_is_ended(lab: Lab, settings: dict[str, float], code: str) -> None:
    async def scenario() -> None:
        async with lab.running(**settings) as (tuning, _):
            record = await tuning.create_job(job_request(await upload(tuning)), "acme/tiny")
            failed = await ended(tuning, record.id)
            assert failed.error is not None
            assert failed.error.code == code
            assert not trainers()

    run(scenario())


def test_process_that_dies_fails_its_job_and_the_next_one_runs(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            record = await start_soon(tuning)
            following = await tuning.create_job(job_request(tuning.files.get(record.training_file)), "acme/tiny")
            assert tuning.jobs.get(following.id).status == "queued"
            os.kill(trainers().pop(), signal.SIGKILL)
            failed = await ended(tuning, record.id)
            assert failed.error is not None
            assert failed.error.code == "training_process_failed"
            assert "SIGKILL" in failed.error.message
            await reached(tuning, following.id, lambda: tuning.jobs.get(following.id).status == "running")
            await tuning.cancel_job(following.id)

    run(scenario())


def test_folder_of_another_server_is_left_alone(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (first, _):
            file = await upload(first)
            async with lab.running() as (second, _):
                with pytest.raises(FineTuningUnavailableError, match="another server"):
                    _ = second.files
            assert first.files.get(file.id) == file

    run(scenario())
