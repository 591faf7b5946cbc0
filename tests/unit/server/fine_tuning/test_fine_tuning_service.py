"""Files, requests, limits and records; no job of these tests trains."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from reft_interventions.errors import InvalidInterventionNameError, StoreError
from reft_interventions.training import TrainingOptions
from reft_server.errors import (
    FileInUseError,
    FileQuotaError,
    FineTuningJobNotFoundError,
    FineTuningQueueFullError,
    FineTuningUnavailableError,
    InvalidRequestError,
    InvalidTrainingFileError,
    ReftError,
    UnknownFileError,
    UnsupportedParameterError,
)
from reft_server.fine_tuning.files import check_rows
from reft_server.fine_tuning.method import plan_training
from reft_server.fine_tuning.progress import ProgressReader, results_of
from reft_server.fine_tuning.records import FileRecord, page
from reft_server.fine_tuning.settings import FineTuningSettings
from tests.unit.server.fine_tuning.conftest import Lab, job_request, run, upload

FILE = FileRecord(id="file-1", filename="rows.jsonl", num_bytes=1)
SETTINGS = FineTuningSettings()
JOB_ID = "ftjob-0123456789abcdef01234567"
GOOD = b'{"prompt": "a", "completion": "b"}\n'


def plan(method: dict[str, Any] | None = None, **fields: Any) -> Any:
    return plan_training(job_request(FILE, method=method, **fields), JOB_ID, SETTINGS)


def reft(**fields: Any) -> dict[str, Any]:
    return {"type": "reft", "reft": fields}


def test_plan_takes_the_trainers_options_by_their_names() -> None:
    chosen = plan(reft(name="pirate", recipe="demo", hyperparameters={"layers": [3, 9], "lr": 1, "epochs": 5}), seed=9)
    assert chosen.name == "pirate"
    assert chosen.recipe == "demo"
    assert (chosen.options.layers, chosen.options.lr, chosen.options.epochs) == ("3;9", 1.0, 5)
    assert (chosen.options.batch_size, chosen.options.seed) == (10, 9)
    assert chosen.options.save_every == SETTINGS.checkpoint_steps


def test_plan_offers_every_option_of_the_trainer() -> None:
    offered = TrainingOptions().as_dict()
    del offered["seed"], offered["save_every"]
    assert plan(reft(hyperparameters=offered)).options.as_dict() == TrainingOptions(
        save_every=SETTINGS.checkpoint_steps
    ).as_dict() | {"patience": None}
    assert len(offered) == len(fields(TrainingOptions)) - 2


@pytest.mark.parametrize(
    "sent",
    [
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": "auto"}}}},
        {"method": None, "hyperparameters": {"n_epochs": 4}},
        {"method": {"type": "supervised"}, "hyperparameters": {"n_epochs": 4, "learning_rate_multiplier": 1.0}},
    ],
)
def test_plan_takes_openais_hyperparameters(sent: dict[str, Any]) -> None:
    options = plan(**sent).options
    assert (options.epochs, options.batch_size, options.lr) == (4, 16, 9e-4)


def test_plan_multiplies_the_learning_rate() -> None:
    hyperparameters = {"hyperparameters": {"learning_rate_multiplier": 10}}
    assert plan({"type": "supervised", "supervised": hyperparameters}).options.lr == pytest.approx(9e-3)


@pytest.mark.parametrize(
    ("suffix", "name"), [(None, "ft-01234567"), ("pirate", "ft-pirate-01234567"), ("a.b", "ft-a.b-01234567")]
)
def test_plan_names_the_intervention_after_suffix_and_job(suffix: str | None, name: str) -> None:
    assert plan({"type": "reft"}, suffix=suffix).name == name


@pytest.mark.parametrize(
    ("sent", "error", "param"),
    [
        ({"method": {"type": "dpo"}}, UnsupportedParameterError, "method.type"),
        ({"method": {"type": "reft", "supervised": {}}}, InvalidRequestError, "method"),
        ({"method": {"type": "reft", "wandb": 1}}, InvalidRequestError, "method"),
        (
            {"method": reft(hyperparameters={"n_epochs": 3})},
            InvalidRequestError,
            "method.reft.hyperparameters.n_epochs",
        ),
        ({"method": reft(hyperparameters={"epochs": "3"})}, InvalidRequestError, "method.reft.hyperparameters.epochs"),
        ({"method": reft(hyperparameters={"epochs": True})}, InvalidRequestError, "method.reft.hyperparameters.epochs"),
        ({"method": reft(hyperparameters={"epochs": 0})}, InvalidRequestError, "method.reft.hyperparameters.epochs"),
        (
            {"method": reft(hyperparameters={"formula": "lora"})},
            InvalidRequestError,
            "method.reft.hyperparameters.formula",
        ),
        (
            {"method": reft(hyperparameters={"patience": 2})},
            InvalidRequestError,
            "method.reft.hyperparameters.patience",
        ),
        ({"method": reft(hyperparameters={"seed": 1})}, UnsupportedParameterError, "method.reft.hyperparameters.seed"),
        ({"method": reft(recipe="cake")}, InvalidRequestError, "method.reft.recipe"),
        ({"method": {"type": "reft"}, "hyperparameters": {}}, InvalidRequestError, "hyperparameters"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {}}}, "hyperparameters": {}},
            InvalidRequestError,
            "hyperparameters",
        ),
        ({"method": reft(name="a"), "suffix": "b"}, InvalidRequestError, "suffix"),
        ({"method": reft(name="Upper")}, InvalidInterventionNameError, "name"),
        ({"suffix": "Upper", "method": None}, InvalidRequestError, "suffix"),
        ({"suffix": "x" * 60, "method": None}, InvalidRequestError, "suffix"),
    ],
)
def test_plan_refuses_by_name(sent: dict[str, Any], error: type[ReftError], param: str) -> None:
    with pytest.raises(error) as raised:
        plan(**sent)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "line 2: not valid JSON"),
        (b'{"prompt": "secret"}', "line 2: prompt and completion must both be strings"),
        (b'{"messages": [{"role": "user", "content": "secret"}]}', "line 2: the last message"),
        (b'{"prompt": "\xff", "completion": "secret"}', "line 2: not UTF-8"),
        (b'{"prompt": "secret", "completion": "b", "tools": []}', "line 2: tools is not served"),
        (b'{"prompt": "secret' + b"x" * (1 << 20), "line 2 is longer than"),
    ],
)
def test_wrong_line_is_named_and_not_quoted(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + line + b"\n" + GOOD)
    with pytest.raises(InvalidTrainingFileError, match=reason) as raised:
        check_rows(path)
    assert "secret" not in raised.value.message


def test_rows_are_counted_without_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n\r\n" + GOOD.rstrip())
    assert check_rows(path) == 2
    path.write_bytes(b"\n\n")
    with pytest.raises(InvalidTrainingFileError, match="no rows"):
        check_rows(path)


def test_files_survive_a_restart_and_leftovers_do_not(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            kept, damaged = await upload(tuning), await upload(tuning)
            folder = tuning.files.folder
        (folder / f"{damaged.id}.json").write_text("{")
        (folder / "half.upload").write_text("cut off")
        async with lab.running() as (tuning, _):
            assert tuning.files.list() == [kept]
            with tuning.files.open_content(kept) as file:
                assert len(file.read()) == kept.num_bytes
            await tuning.delete_file(kept.id)
            with pytest.raises(UnknownFileError):
                tuning.files.get(kept.id)
            with pytest.raises(StoreError):
                tuning.files.open_content(kept)
        assert {path.suffix for path in folder.iterdir()} <= {".json"}

    run(scenario())


@pytest.mark.parametrize("settings", [{"max_files": 1}, {"max_total_bytes": 2 * len(GOOD) - 1}])
def test_files_have_a_quota(lab: Lab, settings: dict[str, int]) -> None:
    async def scenario() -> None:
        async with lab.running(**settings) as (tuning, _):
            first = await upload(tuning, GOOD)
            with pytest.raises(FileQuotaError):
                await upload(tuning, GOOD)
            assert [path.name for path in tuning.files.folder.glob("*.upload")] == []
            await tuning.delete_file(first.id)
            await upload(tuning, GOOD)

    run(scenario())


def test_owners_see_their_own_only(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            path = tuning.files.new_upload_path()
            path.write_bytes(GOOD)
            theirs = await tuning.files.add(path, "rows.jsonl", "ann")
            assert (tuning.files.list(), tuning.files.list("ann")) == ([], [theirs])
            with pytest.raises(UnknownFileError):
                await tuning.delete_file(theirs.id)
            with pytest.raises(UnknownFileError):
                await tuning.create_job(job_request(theirs), "base")

    run(scenario())


@pytest.mark.parametrize(
    ("hyperparameters", "reason"), [({"layers": "9"}, "layer 9 is outside"), ({"epochs": 10**6}, "the limit is")]
)
def test_job_that_does_not_fit_is_refused(lab: Lab, hyperparameters: dict[str, Any], reason: str) -> None:
    async def scenario() -> None:
        async with lab.running() as (tuning, _):
            with pytest.raises(InvalidRequestError, match=reason):
                await tuning.create_job(job_request(await upload(tuning), hyperparameters), "base")
            assert tuning.jobs.list() == []

    run(scenario())


def test_queue_is_bounded_and_cancelled_jobs_leave_it(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running(max_queued=1) as (tuning, _):
            file = await upload(tuning)
            running, queued = [await tuning.create_job(job_request(file), "base") for _ in range(2)]
            with pytest.raises(FineTuningQueueFullError) as full:
                await tuning.create_job(job_request(file), "base")
            assert full.value.retry_after_s == 60
            with pytest.raises(FileInUseError):
                await tuning.delete_file(file.id)
            assert [record.id for record in tuning.jobs.list()] == [queued.id, running.id]
            assert (await tuning.cancel_job(queued.id)).status == "cancelled"
            assert (await tuning.cancel_job(running.id)).status == "cancelled"
            assert tuning.job_counts() == {"cancelled": 2}
            with pytest.raises(FineTuningJobNotFoundError):
                tuning.jobs.get("ftjob-0")

    run(scenario())


def test_oldest_jobs_that_ended_make_room(lab: Lab) -> None:
    async def scenario() -> None:
        async with lab.running(max_jobs=2) as (tuning, _):
            file = await upload(tuning)
            ids = []
            for _ in range(4):
                record = await tuning.create_job(job_request(file), "base")
                await tuning.cancel_job(record.id)
                ids.append(record.id)
            assert [record.id for record in tuning.jobs.list()] == ids[:1:-1]
            assert sorted(path.name for path in tuning.jobs.folder(ids[0]).root.parent.iterdir()) == sorted(ids[2:])

    run(scenario())


def test_service_that_has_not_started_says_so(lab: Lab) -> None:
    tuning, registry = lab.service()
    with pytest.raises(FineTuningUnavailableError):
        _ = tuning.jobs
    run(registry.close())


@pytest.mark.parametrize(
    ("after", "limit", "expected"), [(None, 2, "ab+"), ("b", 2, "cd"), ("b", 1, "c+"), ("d", 2, ""), ("gone", 2, "")]
)
def test_page_goes_on_behind_an_id(after: str | None, limit: int, expected: str) -> None:
    records = [FILE.model_copy(update={"id": letter}) for letter in "abcd"]
    chosen, has_more = page(records, after, limit)
    assert "".join(record.id for record in chosen) + "+" * has_more == expected


def test_progress_is_read_as_it_grows_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    reader = ProgressReader(path)
    assert reader.read_new() == []
    lines = [
        {"event": "started", "time": 10.0, "num_steps": 400, "first_step": 0},
        *(
            {"event": "stepped", "time": 10.0 + step, "step": step, "loss": 9 / step, "num_tokens": 5}
            for step in (1, 2)
        ),
        {"event": "evaluated", "time": 13.0, "label": "epoch 1", "loss": 0.5, "exact_match": 1.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text[:-20])
    assert [event["event"] for event in reader.read_new()] == ["started", "stepped", "stepped"]
    assert [reader.is_shown(step) for step in (1, 2, 400)] == [False, True, True]
    assert reader.estimated_finish is not None
    again = '{"event": "stepped", "time": 15.0, "step": 2, "loss": 4.0, "num_tokens": 5}\n'
    path.write_text(text + '{"event": "ste\n' + again)
    assert [event["event"] for event in reader.read_new()] == ["evaluated", "stepped"]
    content, num_tokens = results_of(path)
    assert content.decode().splitlines() == ["step,train_loss,valid_loss,valid_exact_match", "1,9.0,,", "2,4.0,,"]
    assert num_tokens == 10
