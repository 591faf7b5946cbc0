"""The audit log: every change leaves an entry in its own transaction, and a failed change leaves none."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from reft_interventions.errors import StoreError
from reft_server import cli
from reft_server.errors import TenantExistsError, TenantNotFoundError
from reft_server.request_context import serving
from reft_server.tenants import TenantDirectory, TenantLimits
from reft_server.tenants.audit import AuditQuery, pages
from reft_server.tenants.database import engine_of_url


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[TenantDirectory]:
    with closing(TenantDirectory.of_store(tmp_path)) as directory:
        directory.open()
        yield directory


def _entries(folder: Path) -> list[tuple[str, str, str, dict[str, object]]]:
    with closing(sqlite3.connect(folder / "tenants.sqlite3")) as connection:
        rows = connection.execute("SELECT action, tenant, target, details FROM audit_log ORDER BY id").fetchall()
    return [(action, tenant, target, json.loads(details)) for action, tenant, target, details in rows]


def test_every_change_of_the_directory_leaves_an_entry(directory: TenantDirectory, tmp_path: Path) -> None:
    directory.create_tenant("acme")
    directory.set_limits("acme", TenantLimits(max_sets=3))
    key, born = directory.create_key("acme", ("infer",))
    rotated, _ = directory.rotate_key(key.key_id)
    directory.revoke_key(rotated.key_id)
    directory.grant("", "haiku", "acme")
    directory.withdraw("", "haiku", "acme")
    entries = _entries(tmp_path)
    assert [(action, tenant, target) for action, tenant, target, _ in entries] == [
        ("tenant.create", "acme", "acme"),
        ("tenant.set_limits", "acme", "acme"),
        ("key.create", "acme", key.key_id),
        ("key.rotate", "acme", key.key_id),
        ("key.revoke", "acme", rotated.key_id),
        ("grant.create", "shared", "haiku"),
        ("grant.delete", "shared", "haiku"),
    ]
    assert entries[1][3]["max_sets"] == 3
    assert entries[3][3]["new_key_id"] == rotated.key_id
    assert born.text.split("-", 2)[2] not in str(entries)


def test_change_that_fails_leaves_no_entry(directory: TenantDirectory, tmp_path: Path) -> None:
    directory.create_tenant("acme")
    with pytest.raises(TenantExistsError):
        directory.create_tenant("acme")
    with pytest.raises(TenantNotFoundError):
        directory.set_limits("globex", TenantLimits())
    assert len(_entries(tmp_path)) == 1


def test_entry_names_the_request_and_its_key(directory: TenantDirectory, tmp_path: Path) -> None:
    directory.create_tenant("acme")
    with serving("req-1") as request:
        request.tenant, request.key_id = "shared", "0123456789abcdef"
        directory.create_tenant("globex")
    with closing(sqlite3.connect(tmp_path / "tenants.sqlite3")) as connection:
        actors = connection.execute("SELECT actor, key_id, request_id FROM audit_log ORDER BY id").fetchall()
    assert actors == [("command line", None, None), ("shared", "0123456789abcdef", "req-1")]


def test_database_refuses_to_change_or_remove_an_entry(database_url: str) -> None:
    statements = ["UPDATE audit_log SET actor = 'nobody'", "DELETE FROM audit_log"]
    if database_url.startswith("sqlite"):
        statements.append(
            "INSERT OR REPLACE INTO audit_log SELECT id, 0, 'x', '', '', 'x', 'x', 'x', '{}' FROM audit_log"
        )
    else:
        statements.append("TRUNCATE audit_log")
    with closing(TenantDirectory.of_store(Path("unused"), database_url=database_url)) as directory:
        directory.open()
        directory.create_tenant("acme")
        before = directory.audit_entries(AuditQuery())
        engine = engine_of_url(database_url)
        for statement in statements:
            with pytest.raises(DBAPIError, match="only ever added"), engine.begin() as connection:
                connection.execute(text(statement))
        engine.dispose()
        assert directory.audit_entries(AuditQuery()) == before


def test_export_reads_page_after_page(directory: TenantDirectory) -> None:
    for number in range(5):
        directory.create_tenant(f"t{number}")
    found = list(pages(directory.audit_entries, AuditQuery(limit=2)))
    assert [page.count("\n") for page in found] == [2, 2, 1]
    assert [json.loads(line)["target"] for line in "".join(found).splitlines()] == ["t0", "t1", "t2", "t3", "t4"]


def test_entry_is_there_before_the_change_and_a_failure_is_added(directory: TenantDirectory) -> None:
    def fail() -> None:
        assert [entry.action for entry in directory.audit_entries(AuditQuery())] == ["set.upload"]
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), directory.recording("set.upload", "acme", "haiku", size=1):
        fail()
    first, second = directory.audit_entries(AuditQuery())
    assert (first.action, first.details) == ("set.upload", {"size": 1})
    assert (second.action, second.details) == ("set.upload.failed", {"size": 1, "error": "ValueError"})


def test_change_does_not_begin_where_the_log_cannot_be_written(directory: TenantDirectory, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "tenants.sqlite3")) as connection:
        connection.execute("DROP TABLE audit_log")
    with pytest.raises(StoreError), directory.recording("set.upload", "acme", "haiku"):
        pytest.fail("it began")


def test_export_command_writes_json_lines(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for tenant in ("acme", "globex"):
        cli.main(["keys", "create", tenant, "--store-dir", str(tmp_path)])
    capsys.readouterr()
    assert cli.main(["audit", "export", "--store-dir", str(tmp_path)]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["action"], one["tenant"], one["actor"]) for one in entries] == [
        ("tenant.create", "acme", "command line"),
        ("key.create", "acme", "command line"),
        ("tenant.create", "globex", "command line"),
        ("key.create", "globex", "command line"),
    ]
    choice = [
        "--tenant",
        "globex",
        "--action",
        "key.",
        "--after",
        "1",
        "--since",
        "2020-01-01",
        "--until",
        "9999-01-01",
    ]
    cli.main(["audit", "export", "--store-dir", str(tmp_path), *choice])
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == entries[3:]


def test_export_command_refuses_a_time_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["audit", "export", "--since", "yesterday"])
    assert "'yesterday' is not a time such as" in capsys.readouterr().err


def test_pruning_leaves_an_entry_with_the_digest_of_what_went(database_url: str) -> None:
    with closing(TenantDirectory.of_store(Path("unused"), database_url=database_url)) as directory:
        directory.open()
        for number in range(4):
            directory.create_tenant(f"t{number}")
        entries = directory.audit_entries(AuditQuery())
        gone: list[str] = []
        assert directory.prune_audit_log(entries[2].at, gone.append) == 2
        assert directory.prune_audit_log(entries[2].at) == 0
        *left, pruned = directory.audit_entries(AuditQuery())
        assert left == list(entries[2:])
        assert "".join(gone) == "".join(f"{entry.model_dump_json()}\n" for entry in entries[:2])
        assert (pruned.action, pruned.actor, pruned.tenant) == ("audit.prune", "command line", "shared")
        assert pruned.target == str(entries[1].id)
        digest = hashlib.sha256("".join(gone).encode()).hexdigest()
        assert pruned.details == {"num_entries": 2, "sha256": digest}


def test_what_a_pruning_says_is_a_part_of_what_the_next_one_digests(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(TenantDirectory.of_store(Path("unused"), database_url=database_url)) as directory:
        directory.open()
        for number in range(5):
            directory.create_tenant(f"t{number}")
        monkeypatch.setattr("reft_server.tenants.audit._MAX_PRUNED", 2)
        assert directory.prune_audit_log(time.time() + 1) == 5
        prunings = directory.audit_entries(AuditQuery())
        assert [entry.details["num_entries"] for entry in prunings] == [2, 2, 1]
        monkeypatch.undo()
        gone: list[str] = []
        assert directory.prune_audit_log(time.time() + 1, gone.append) == 3
        assert gone == ["".join(f"{entry.model_dump_json()}\n" for entry in prunings)]


def test_server_prunes_what_is_older_than_its_retention(directory: TenantDirectory) -> None:
    directory.create_tenant("acme")
    directory.audit_retention_s = 0.0

    async def start_and_stop() -> None:
        chore = asyncio.create_task(directory.keep_audit_log_short())
        async with asyncio.timeout(60):
            while directory.audit_entries(AuditQuery())[-1].action != "audit.prune":
                await asyncio.sleep(0.001)
        chore.cancel()

    asyncio.run(start_and_stop())
    assert len(directory.audit_entries(AuditQuery())) == 1


def test_prune_command_writes_what_it_removes(
    directory: TenantDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory.create_tenant("acme")
    (entry,) = directory.audit_entries(AuditQuery())
    output = tmp_path / "old.jsonl"
    command = ["audit", "prune", "--before", "2999-01-01", "--output", str(output), "--store-dir", str(tmp_path)]
    assert cli.main(command) == 0
    assert output.read_text() == f"{entry.model_dump_json()}\n"
    assert capsys.readouterr().err == "entries removed: 1\n"
    assert cli.main(command) == 2  # it never writes over a file
    assert "Can't write" in capsys.readouterr().err
    assert [entry.action for entry in directory.audit_entries(AuditQuery())] == ["audit.prune"]


def test_database_lets_go_no_entry_that_no_pruning_covers(database_url: str) -> None:
    with closing(TenantDirectory.of_store(Path("unused"), database_url=database_url)) as directory:
        directory.open()
        for number in range(3):
            directory.create_tenant(f"t{number}")
        directory.prune_audit_log(directory.audit_entries(AuditQuery())[1].at)
        before = directory.audit_entries(AuditQuery())
        engine = engine_of_url(database_url)
        with pytest.raises(DBAPIError, match="only ever added"), engine.begin() as connection:
            connection.execute(text("DELETE FROM audit_log"))
        engine.dispose()
        assert directory.audit_entries(AuditQuery()) == before
