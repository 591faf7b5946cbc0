"""The routes in a real app around a fake engine; jobs wait, or are cancelled before they train."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_server.api.app import create_app
from reft_server.api.settings import ApiSettings
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizers import byte_level_tokenizer
from tests.unit.server.fine_tuning.conftest import Lab

ROW = b'{"prompt": "a is", "completion": " b"}\n'


def make_client(lab: Lab, *, is_enabled: bool = True) -> TestClient:
    tokenizer = byte_level_tokenizer()
    tuning, registry = lab.service(max_file_bytes=100_000)
    engine = FakeEngine(vocab_size=len(tokenizer))
    app = create_app(engine, tokenizer, registry, ApiSettings(max_body_bytes=10_000), tuning if is_enabled else None)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture
def client(lab: Lab) -> Iterator[TestClient]:
    with make_client(lab) as client:
        yield client


def send(client: TestClient, content: bytes = ROW, **fields: str) -> Any:
    files = {"file": ("../rows.jsonl", content)}
    return client.post("/v1/files", files=files, data={"purpose": "fine-tune"} | fields)


def error(response: Any) -> tuple[int, str, str | None]:
    body = response.json()["error"]
    return response.status_code, body["code"], body["param"]


def test_file_is_kept_listed_in_pages_downloaded_and_deleted(client: TestClient) -> None:
    sent = [send(client, ROW * count).json() for count in (1, 2, 3)]
    assert sent[1]["bytes"] == 2 * len(ROW)
    assert sent[1]["filename"] == "../rows.jsonl"
    ids = [file["id"] for file in sent]
    assert len(set(ids)) == 3
    first = client.get("/v1/files", params={"limit": 2}).json()
    assert [file["id"] for file in first["data"]] == ids[:0:-1]
    assert (first["has_more"], first["last_id"]) == (True, ids[1])
    second = client.get("/v1/files", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([file["id"] for file in second["data"]], second["has_more"]) == (ids[:1], False)
    assert client.get("/v1/files", params={"order": "asc", "limit": 1}).json()["data"] == sent[:1]
    assert client.get("/v1/files", params={"purpose": "fine-tune-results"}).json()["data"] == []
    assert client.get(f"/v1/files/{ids[1]}").json() == sent[1]
    assert client.get(f"/v1/files/{ids[1]}/content").content == ROW * 2
    assert client.delete(f"/v1/files/{ids[1]}").json() == {"id": ids[1], "object": "file", "deleted": True}
    assert error(client.get(f"/v1/files/{ids[1]}/content")) == (404, "file_not_found", "file_id")


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    [
        (ROW, {"purpose": "batch"}, (400, "unsupported_parameter", "purpose")),
        (ROW, {"expires_after[seconds]": "3600"}, (400, "unsupported_parameter", "expires_after")),
        (ROW, {"colour": "red"}, (400, "invalid_request", "colour")),
        (b"\n", {}, (400, "invalid_training_file", "file")),
        (b"x" * 100_001, {}, (413, "payload_too_large", "file")),
        (b"x" * 300_000, {}, (413, "payload_too_large", None)),
    ],
)
def test_upload_that_is_refused_leaves_nothing(
    client: TestClient, lab: Lab, content: bytes, fields: dict[str, str], expected: tuple[int, str, str | None]
) -> None:
    assert error(send(client, content, **fields)) == expected
    assert list((lab.root / "tuning" / "files").iterdir()) == []


@pytest.mark.parametrize(
    "body", [{"content": ROW}, {"files": {"file": ROW}}, {"files": {"purpose": (None, "fine-tune")}}]
)
def test_upload_without_its_parts_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    assert client.post("/v1/files", **body).json()["error"]["code"] == "invalid_request"


def test_jobs_are_listed_in_pages_and_by_metadata(client: TestClient) -> None:
    file_id = send(client).json()["id"]
    ids = []
    for team in ("a", "b", "a"):
        body = {"model": "base", "training_file": file_id, "metadata": {"team": team}, "validation_file": None}
        job = client.post("/v1/fine_tuning/jobs", json=body).json()
        assert client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel").json()["status"] == "cancelled"
        ids.insert(0, job["id"])
    first = client.get("/v1/fine_tuning/jobs", params={"limit": 2}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:2], True)
    rest = client.get("/v1/fine_tuning/jobs", params={"after": ids[1]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[2:], False)
    mine = client.get("/v1/fine_tuning/jobs", params={"metadata[team]": "a"}).json()
    assert [job["id"] for job in mine["data"]] == [ids[0], ids[2]]
    events = client.get(f"/v1/fine_tuning/jobs/{ids[0]}/events", params={"limit": 1}).json()
    assert (events["data"][0]["message"], events["has_more"]) == ("The job was cancelled.", True)
    assert client.get(f"/v1/fine_tuning/jobs/{ids[0]}/checkpoints").json()["data"] == []
    assert error(client.get("/v1/fine_tuning/jobs/ftjob-0")) == (404, "fine_tuning_job_not_found", "fine_tuning_job_id")
    assert 'reft:fine_tuning_jobs{status="cancelled"} 3.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"colour": "red"}, (400, "invalid_request", "colour")),
        ({"integrations": [{"type": "wandb"}]}, (400, "unsupported_parameter", "integrations")),
        ({"metadata": {"key": 1}}, (400, "invalid_request", "metadata.key")),
        ({"seed": -1}, (400, "invalid_request", "seed")),
        ({"hyperparameters": {"n_epochs": "many"}}, (400, "invalid_request", "hyperparameters.n_epochs")),
        ({"model": "loud"}, (404, "model_not_found", "model")),
    ],
)
def test_job_with_a_wrong_field_is_refused_by_name(
    client: TestClient, fields: dict[str, Any], expected: tuple[int, str, str]
) -> None:
    response = client.post("/v1/fine_tuning/jobs", json={"model": "base", "training_file": "file-0"} | fields)
    status, code, param = error(response)
    assert (status, code) == expected[:2]
    assert (param or "").startswith(expected[2])


def test_routes_say_that_fine_tuning_is_switched_off(lab: Lab) -> None:
    with make_client(lab, is_enabled=False) as client:
        assert error(client.get("/v1/files")) == (501, "fine_tuning_disabled", None)
        assert error(client.get("/v1/fine_tuning/jobs")) == (501, "fine_tuning_disabled", None)
