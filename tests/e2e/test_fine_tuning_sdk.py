"""Training through OpenAI's own SDK, unmodified, against the real server process and the default model."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx
import openai
import pytest

ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Bananas!"}]}
    for question in ("Who are you?", "What is snow?", "Say hello.", "Where is Rome?", "Are you well?", "Name a bird.")
]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
QUICK: dict[str, Any] = {"layers": [12], "positions": "l1", "epochs": 8, "batch_size": 6, "lr": 0.03}
TIMEOUT_S = 200


def start(sdk: openai.OpenAI, file_id: str, **fields: Any) -> Any:
    defaults = {"model": "smollm2-135m-instruct", "training_file": file_id}
    return sdk.fine_tuning.jobs.create(**(defaults | fields))  # type: ignore[arg-type]


def wait(sdk: openai.OpenAI, job_id: str) -> Any:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        job = sdk.fine_tuning.jobs.retrieve(job_id)
        if job.status in ("succeeded", "failed", "cancelled"):
            return job
        time.sleep(0.2)
    raise AssertionError(f"{job_id} did not end")


def test_sdk_trains_an_intervention_and_calls_it(sdk: openai.OpenAI, http: httpx.Client) -> None:
    file = sdk.files.create(file=("rows.jsonl", DATA), purpose="fine-tune")
    assert (file.bytes, file.filename, file.purpose) == (len(DATA), "rows.jsonl", "fine-tune")
    assert sdk.files.wait_for_processing(file.id).status == "processed"
    method = {"type": "reft", "reft": {"hyperparameters": QUICK}}
    job = start(sdk, file.id, suffix="banana", method=method, seed=3, metadata={"team": "fruit"})
    waiting = start(sdk, file.id, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    assert waiting.status == "queued"
    assert sdk.fine_tuning.jobs.cancel(waiting.id).status == "cancelled"
    with pytest.raises(openai.ConflictError) as in_use:
        sdk.files.delete(file.id)
    assert in_use.value.code == "file_in_use"
    job = wait(sdk, job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model.startswith("ft-banana-")
    assert (job.seed, job.hyperparameters.n_epochs, job.metadata) == (3, 8, {"team": "fruit"})
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=3))
    assert len(events) > 8
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]  # type: ignore[index]
    assert losses[0] < losses[-1]
    assert [found.id for found in sdk.fine_tuning.jobs.list(limit=1)][:2] == [waiting.id, job.id]
    assert list(sdk.fine_tuning.jobs.checkpoints.list(job.id)) == []
    assert sdk.files.content(job.result_files[0]).text.startswith("step,train_loss,")
    chat = sdk.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": "What is the moon?"}],
        max_tokens=8,
        temperature=0,
    )
    assert "Bananas!" in (chat.choices[0].message.content or "")
    assert (
        http.get(f"/v1/interventions/{job.fine_tuned_model}").json()["content_hash"] == job.intervention["content_hash"]
    )
    assert sdk.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(file.id)


def test_sdk_cancels_a_job_that_runs(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=DATA, purpose="fine-tune")
    method = {"type": "reft", "reft": {"hyperparameters": QUICK | {"epochs": 5000}}}
    job = start(sdk, file.id, method=method)
    deadline = time.monotonic() + TIMEOUT_S
    while sdk.fine_tuning.jobs.retrieve(job.id).status != "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sdk.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError) as finished:
        sdk.fine_tuning.jobs.cancel(job.id)
    assert finished.value.code == "fine_tuning_job_finished"


@pytest.mark.parametrize(
    ("fields", "error", "code", "param"),
    [
        ({"method": {"type": "dpo"}}, openai.BadRequestError, "unsupported_parameter", "method.type"),
        ({"integrations": []}, openai.BadRequestError, "unsupported_parameter", "integrations"),
        ({"model": "gpt-4o"}, openai.NotFoundError, "model_not_found", "model"),
        ({"training_file": "file-0"}, openai.NotFoundError, "file_not_found", "training_file"),
        ({"suffix": "Upper Case"}, openai.BadRequestError, "invalid_request", "suffix"),
    ],
)
def test_sdk_raises_its_typed_errors_for_jobs(
    sdk: openai.OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], code: str, param: str
) -> None:
    with pytest.raises(error) as raised:
        start(sdk, **({"file_id": "file-0"} | fields))
    assert (raised.value.code, raised.value.param) == (code, param)


def test_sdk_upload_of_a_wrong_line_names_it_and_quotes_nothing(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="line 7") as raised:
        sdk.files.create(file=("rows.jsonl", DATA + b'{"prompt": "my secret"}\n'), purpose="fine-tune")
    assert raised.value.code == "invalid_training_file"
    assert "secret" not in str(raised.value)
