"""What ends a job early, and what a stop or a crash of the server leaves of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reft_interventions.errors import InterventionNotFoundError, InterventionSelfTestError
from reft_server.errors import FineTuningJobFinishedError, FineTuningUnavailableError
from reft_server.fine_tuning.records import JobRecord
from reft_server.fine_tuning.service import FineTuning
from tests.unit.server.fine_tuning.conftest import ROWS, Lab, ended, job_request, run, until, upload

LONG = {"epochs": 2000}


def trainers() -> set[int]:
    """The training processes that this process started and that live."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = {int(pid) for path in children for pid in path.read_text().split()}
    return {pid for pid in pids if b"fine_tuning.worker" in command_line(pid)}


def command_line(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


async def start(tuning: FineTuning, **fields: object) -> JobRecord:
    """A job that trains for long, once it has a checkpoint."""
    record = await tuning.create_job(job_request(await upload(tuning), LONG, **fields), "acme/tiny")  # type: ignore[arg-type]
    checkpoint = tuning.jobs.folder(record.id).root / "output.checkpoint.safetensors"
    await until(checkpoint.is_file)
    return record


def test_cancel_ends_the_process_and_leaves_nothing(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, registry):
            record = await start(tuning)
            assert len(trainers()) == 1
            assert (await tuning.cancel_job(record.id)).status == "cancelled"
            assert not trainers()
            assert not (tuning.jobs.folder(record.id).root / "output.checkpoint.safetensors").exists()
            assert tuning.jobs.events(record.id)[0].message == "The job was cancelled."
            with pytest.raises(InterventionNotFoundError):
                registry.get("echo")
            with pytest.raises(FineTuningJobFinishedError, match="has cancelled already"):
                await tuning.cancel_job(record.id)
            await tuning.delete_file(record.training_file)

    run(scenario())


def test_job_goes_on_from_its_checkpoint_after_a_stop(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            record = await start(tuning)
        assert not trainers()
        async with lab.running() as (tuning, _):
            await until(lambda: any("of them done" in event.message for event in tuning.jobs.events(record.id)[:5]))
            assert tuning.jobs.get(record.id).num_restarts == 0, "a stop in order does not count"
            started = [event for event in tuning.jobs.events(record.id) if "of them done" in event.message]
            assert started[0].data["first_step"] >= 2
            await tuning.cancel_job(record.id)

    run(scenario())


def test_job_that_outlives_too_many_crashes_fails(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running(max_running=1) as (tuning, _):
            record = await start(tuning)
        path = tuning._jobs.folder(record.id).record
        path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running", "num_restarts": 3}))
        async with lab.running() as (tuning, _):
            failed = tuning.jobs.get(record.id)
            assert failed.status == "failed"
            assert failed.error is not None
            assert failed.error.code == "training_process_failed"

    run(scenario())


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"max_memory_bytes": 1 << 20}, "training_out_of_memory"), ({"max_time_s": 0.1}, "training_time_limit")],
)
def test_job_that_takes_too_much_is_ended(lab: Lab, settings: dict[str, float], code: str) -> None:
    async def scenario() -> None:
        async with lab.running(**settings) as (tuning, _):
            record = await tuning.create_job(job_request(await upload(tuning), LONG), "acme/tiny")
            failed = await ended(tuning, record.id)
            assert failed.error is not None
            assert failed.error.code == code
            assert not trainers()

    run(scenario())


def test_job_tells_what_the_trainer_refuses(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            data = await upload(tuning, [*ROWS, {"messages": [{"role": "assistant", "content": "My secret"}] * 2}])
            record = await tuning.create_job(job_request(data), "acme/tiny")
            failed = await ended(tuning, record.id)
            assert failed.error is not None
            assert (failed.error.code, failed.error.param) == ("invalid_training_file", "training_file")
            assert f"{data.id}.jsonl line 13" in failed.error.message
            assert str(lab.root) not in failed.error.message

    run(scenario())


def test_job_whose_set_is_refused_fails_as_the_upload_would(lab: Lab) -> None:
    async def scenario() -> None:
        lab.engine.failure = InterventionSelfTestError("the edit does nothing")
        async with lab.running() as (tuning, registry):
            record = await tuning.create_job(job_request(await upload(tuning)), "acme/tiny")
            failed = await ended(tuning, record.id)
            assert failed.error is not None
            assert failed.error.code == "intervention_self_test_failed"
            with pytest.raises(InterventionNotFoundError):
                registry.get("echo")

    run(scenario())


def test_process_that_dies_fails_its_job_and_the_next_one_runs(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            record = await start(tuning)
            following = await tuning.create_job(job_request(tuning.files.get(record.training_file), LONG), "acme/tiny")
            assert tuning.jobs.get(following.id).status == "queued"
            os.kill(trainers().pop(), signal.SIGKILL)
            failed = await ended(tuning, record.id)
            assert failed.error is not None
            assert (failed.error.code, "SIGKILL" in failed.error.message) == ("training_process_failed", True)
            await until(lambda: tuning.jobs.get(following.id).status == "running")
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


def test_trainer_ends_with_a_server_that_is_killed_and_its_job_goes_on(lab: Lab, tmp_path: Path) -> None:
    crashing = Path(__file__).with_name("crashing_server.py")
    command = [sys.executable, str(crashing), str(lab.root), str(lab.base.model_path), lab.base.fingerprint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        job_id, trainer = server.stdout.readline().split()
        server.kill()
    assert server.returncode == -signal.SIGKILL

    async def scenario() -> None:
        await until(lambda: b"fine_tuning.worker" not in command_line(int(trainer)), timeout_s=10)
        async with lab.running() as (tuning, _):
            record = tuning.jobs.get(job_id)
            assert record.num_restarts == 1
            await until(lambda: any("of them done" in event.message for event in tuning.jobs.events(job_id)[:3]))
            await tuning.cancel_job(job_id)

    run(scenario())
