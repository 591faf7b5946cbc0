"""The audit log: every change leaves an entry in its own transaction, and a failed change leaves none."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reft_server.errors import TenantExistsError, TenantNotFoundError
from reft_server.request_context import serving
from reft_server.tenants import TenantDirectory, TenantLimits


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
