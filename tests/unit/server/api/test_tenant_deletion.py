"""A deleted tenant leaves nothing but its audit entries, and whoever gets its name starts with nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import select
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_server.fine_tuning.records import FileRecord, JobRecord
from reft_server.fine_tuning.runner import TrainingBase
from reft_server.fine_tuning.service import FineTuning
from reft_server.fine_tuning.settings import FineTuningSettings
from reft_server.registry import Registry
from reft_server.tenants import Scope, TenantDirectory
from reft_server.tenants.database import engine_of_url
from reft_server.tenants.schema import METADATA, OUTLIVES_TENANT
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]
JOB, FILE = "ftjob-" + "a" * 24, "file-" + "a" * 24


def make_tuning(folder: Path) -> Callable[[Registry], FineTuning]:
    """With a file of acme's, and a job that waits."""
    (folder / "files").mkdir(parents=True)
    (folder / "jobs" / JOB).mkdir(parents=True)
    file = FileRecord(id=FILE, filename="x.jsonl", num_bytes=1, num_rows=1, owner="acme")
    (folder / f"files/{FILE}.json").write_text(file.model_dump_json())
    (folder / f"files/{FILE}.jsonl").write_text("x")
    options = {"epochs": 1, "batch_size": 1, "lr": 1e-3, "seed": 1}
    values = {"owner": "acme", "model": "base", "name": "x", "training_file": FILE, "method": {}, "options": options}
    job = JobRecord(id=JOB, status="cancelled", **values)
    (folder / f"jobs/{JOB}/job.json").write_text(job.model_dump_json())
    return lambda registry: FineTuning(
        folder, FineTuningSettings(), TrainingBase(folder, "tiny", "fingerprint", 4), registry
    )


def headers(directory: TenantDirectory, tenant: str, *scopes: Scope) -> dict[str, str]:
    """With a new key."""
    return {"authorization": f"Bearer {directory.create_key(tenant, scopes)[1].text}"}


def test_deleted_tenant_leaves_nothing_but_its_audit_entries(
    make_client: MakeClient, tmp_path: Path, database_url: str
) -> None:
    directory = TenantDirectory.of_store(Path("unused"), database_url=database_url)
    with closing(directory):
        directory.open()
        for tenant in ("acme", "globex"):
            directory.create_tenant(tenant)
        client = make_client(directory=directory, make_tuning=make_tuning(tmp_path / "tuning"))
        operator, acme = headers(directory, "", "admin", "upload"), headers(directory, "acme", "infer", "upload")
        globex = headers(directory, "globex", "infer", "upload")
        for name, owner in (("old", acme), ("style", acme), ("theirs", globex)):
            assert client.post(f"/v1/interventions?name={name}", content=dumps(make_set(1)), headers=owner).is_success
        for method, path, owner, body in (
            ("DELETE", "/v1/interventions/old", acme, None),
            ("PUT", "/v1/interventions/style/grants/globex", acme, None),
            ("PUT", "/v1/interventions/theirs/grants/acme", globex, None),
            ("PUT", "/v1/routes/greet", acme, {"targets": [{"intervention": "style"}]}),
            ("PUT", "/v1/interventions/style/aliases/prod", acme, {"version": 1}),
        ):
            answer = client.request(method, path, headers=owner, json=body)
            assert answer.is_success, answer.text

        answer = client.delete("/v1/admin/tenants/acme", headers=operator)
        assert answer.json() == {"object": "tenant.deleted", "name": "acme", "deleted": True}

        assert client.get("/v1/interventions", headers=acme).status_code == 401
        assert [path for path in (tmp_path / "tuning").rglob("*") if path.name.startswith((FILE, "job.json"))] == []
        assert rows_naming("acme", database_url) == []
        assert client.get("/v1/interventions/style?tenant=acme", headers=globex).status_code == 404
        assert client.get("/v1/interventions/theirs", headers=globex).status_code == 200
        log = client.get("/v1/admin/audit?tenant=acme", headers=operator).json()["data"]
        actions = [one["action"] for one in log if one["action"] in ("tenant.close", "tenant.delete", "set.purge")]
        assert actions == ["tenant.delete", "set.purge", "tenant.close"]

        client.post("/v1/admin/tenants", json={"name": "acme"}, headers=operator)
        anew = headers(directory, "acme", "infer", "upload")
        for path in ("/v1/interventions", "/v1/files", "/v1/fine_tuning/jobs", "/v1/routes"):
            assert client.get(path, headers=anew).json()["data"] == [], path
        assert client.post("/v1/interventions/old/restore", headers=anew).status_code in (404, 405)


def rows_naming(tenant: str, database_url: str) -> list[Any]:
    """Every row that names a tenant, in the tables that do not outlive it."""
    engine = engine_of_url(database_url)
    tables = [table for table in METADATA.tables.values() if OUTLIVES_TENANT not in table.info]
    with engine.connect() as connection:
        rows = [row for table in tables for row in connection.execute(select(table))]
    engine.dispose()
    return [row for row in rows if tenant in row]


def test_operators_tenant_stays_and_one_that_is_not_there_is_not_found(make_client: MakeClient) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    client = make_client(directory=directory)
    operator = headers(directory, "", "admin")
    refused = client.delete("/v1/admin/tenants/shared", headers=operator)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_request")
    absent = client.delete("/v1/admin/tenants/acme", headers=operator)
    assert (absent.status_code, absent.json()["error"]["code"]) == (404, "tenant_not_found")
    assert client.get("/v1/admin/audit?action=tenant.", headers=operator).json()["data"] == []


def test_deletion_that_failed_midway_goes_on_when_it_is_sent_again(make_client: MakeClient, monkeypatch: Any) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    directory.create_tenant("acme")
    client = make_client(directory=directory)
    operator, acme = headers(directory, "", "admin"), headers(directory, "acme", "upload")
    client.post("/v1/interventions?name=style", content=dumps(make_set(1)), headers=acme)
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "forget", _fail)
        assert client.delete("/v1/admin/tenants/acme", headers=operator).status_code == 500
    assert client.get("/v1/interventions", headers=acme).status_code == 401
    assert client.get("/v1/admin/tenants/acme", headers=operator).status_code == 200
    assert client.delete("/v1/admin/tenants/acme", headers=operator).status_code == 200
    assert client.get("/v1/admin/tenants/acme", headers=operator).status_code == 404


async def _fail(*_: object) -> None:
    raise OSError("the disk is gone")
