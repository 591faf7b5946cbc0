"""Training through OpenAI's own SDK, unmodified, against the real server process and the default model."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.conftest import Server

PAGE = Path(__file__).parents[2] / "docs" / "fine-tuning.md"
DATA = b'{"prompt": "a is", "completion": " b"}\n' * 6
TIMEOUT_S = 200


def start(sdk: openai.OpenAI, file_id: str, **fields: Any) -> Any:
    defaults = {"model": "smollm2-135m-instruct", "training_file": file_id}
    return sdk.fine_tuning.jobs.create(**(defaults | fields))  # type: ignore[arg-type]


def test_sdk_example_of_the_docs_trains_an_intervention_and_calls_it(
    server: Server, sdk: openai.OpenAI, http: httpx.Client
) -> None:
    found = re.search(
        r"<!-- test:fine-tuning -->\n```python\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    code = found[1].replace("http://127.0.0.1:8000", server.url)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.splitlines()
    assert printed[0].startswith("Created fine-tuning job: ftjob-")
    assert printed[-1].startswith("Bananas!")
    job = sdk.fine_tuning.jobs.list(limit=1).data[0]
    assert job.status == "succeeded"
    assert (job.fine_tuned_model or "").startswith("ft-banana-")
    assert (job.hyperparameters.n_epochs, job.hyperparameters.batch_size) == (8, 6)
    events = list(sdk.fine_tuning.jobs.list_events(job.id, limit=3))
    assert [event.message for event in reversed(events)] == printed[:-1]
    losses = [event.data["train_loss"] for event in events if event.type == "metrics"]  # type: ignore[index]
    assert losses[0] < losses[-1]
    assert sdk.files.content(job.result_files[0]).text.startswith("step,train_loss,")
    stored = http.get(f"/v1/interventions/{job.fine_tuned_model}").json()
    assert job.model_extra is not None
    assert stored["content_hash"] == job.model_extra["intervention"]["content_hash"]
    assert sdk.files.delete(job.training_file).deleted
    with pytest.raises(openai.NotFoundError):
        sdk.files.retrieve(job.training_file)


def test_sdk_cancels_jobs_that_run_and_wait(sdk: openai.OpenAI) -> None:
    file = sdk.files.create(file=("rows.jsonl", DATA), purpose="fine-tune")
    assert (file.bytes, file.filename, file.purpose) == (len(DATA), "rows.jsonl", "fine-tune")
    assert sdk.files.wait_for_processing(file.id).status == "processed"
    running = start(sdk, file.id, method={"type": "reft", "reft": {"hyperparameters": {"epochs": 5000}}}, seed=3)
    waiting = start(sdk, file.id, method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}})
    deadline = time.monotonic() + TIMEOUT_S
    while sdk.fine_tuning.jobs.retrieve(running.id).status != "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert sdk.fine_tuning.jobs.retrieve(waiting.id).status == "queued"
    assert [job.id for job in sdk.fine_tuning.jobs.list(limit=1)][:2] == [waiting.id, running.id]
    with pytest.raises(openai.ConflictError) as in_use:
        sdk.files.delete(file.id)
    assert in_use.value.code == "file_in_use"
    assert [sdk.fine_tuning.jobs.cancel(job.id).status for job in (waiting, running)] == ["cancelled"] * 2
    assert list(sdk.fine_tuning.jobs.checkpoints.list(running.id)) == []
    with pytest.raises(openai.BadRequestError) as finished:
        sdk.fine_tuning.jobs.cancel(running.id)
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
