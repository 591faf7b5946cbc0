"""Tenants, keys and grants: what is stored, what opens something, and what another process sees."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import text

from reft_interventions.errors import StoreError
from reft_server.errors import (
    ApiKeyNotFoundError,
    ConfigurationError,
    InvalidRequestError,
    TenantExistsError,
    TenantNotFoundError,
)
from reft_server.tenants import SHARED, Scope, TenantDirectory, TenantLimits
from reft_server.tenants.database import engine_of_url, reading
from reft_server.tenants.keys import parse_key
from reft_server.tenants.snapshot import read_snapshot
from tests.postgres import Postgres


@pytest.fixture(params=["memory", "postgresql"])
def directory(request: pytest.FixtureRequest) -> Iterator[TenantDirectory]:
    """An open directory with a tenant `acme`."""
    if request.param == "memory":
        directory = TenantDirectory.in_memory()
    else:
        postgres: Postgres = request.getfixturevalue("postgres")
        directory = TenantDirectory.of_store(Path("unused"), database_url=postgres.empty_database())
    directory.open()
    directory.create_tenant("acme")
    yield directory
    directory.close()


@pytest.fixture
def directory_in_file(tmp_path: Path) -> Iterator[TenantDirectory]:
    """The same, on disk."""
    directory = TenantDirectory.of_store(tmp_path)
    directory.open()
    directory.create_tenant("acme")
    yield directory
    directory.close()


def test_key_opens_its_tenant_and_is_stored_nowhere(directory_in_file: TenantDirectory, tmp_path: Path) -> None:
    directory = directory_in_file
    key, born = directory.create_key("acme", ("infer",), description="the app")
    caller = directory.snapshot.caller(born.text)
    assert caller is not None
    assert (caller.tenant.name, caller.scopes, caller.key_id) == ("acme", {"infer"}, key.key_id)
    secret = born.text.split("-", 2)[2].encode()
    for path in tmp_path.iterdir():
        assert secret not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert born.text not in repr(born)
    assert "digest" not in repr(key)


def test_keys_differ_and_their_hashes_too(directory: TenantDirectory) -> None:
    keys = [directory.create_key("acme", ("infer",)) for _ in range(4)]
    assert len({born.text for _, born in keys}) == len({key.digest for key, _ in keys}) == 4
    assert all(parse_key(born.text) for _, born in keys)


@pytest.mark.parametrize("text", ["", "sk-123", "reft-", "reft-0123456789abcdef-short", "none", "Bearer"])
def test_text_that_is_no_key_opens_nothing(directory: TenantDirectory, text: str) -> None:
    directory.create_key("acme", ("infer",))
    assert directory.snapshot.caller(text) is None


def test_wrong_secret_or_another_keys_secret_opens_nothing(directory: TenantDirectory) -> None:
    one, other = directory.create_key("acme", ("infer",))[1], directory.create_key("acme", ("infer",))[1]
    secret = other.text.split("-", 2)[2]
    assert directory.snapshot.caller(f"reft-{one.key_id}-{secret}") is None
    assert directory.snapshot.caller(f"reft-{'0' * 16}-{secret}") is None


def test_revoked_key_opens_nothing_and_its_row_stays(directory: TenantDirectory) -> None:
    key, born = directory.create_key("acme", ("infer",))
    directory.revoke_key(key.key_id)
    assert directory.snapshot.caller(born.text) is None
    assert key.key_id in directory.snapshot.keys
    with pytest.raises(ApiKeyNotFoundError):
        directory.revoke_key(key.key_id)


def test_key_expires_by_itself(directory: TenantDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    born = directory.create_key("acme", ("infer",), expires_at=time.time() + 60)[1]
    assert directory.snapshot.caller(born.text) is not None
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert directory.snapshot.caller(born.text) is None


def test_rotated_key_has_the_same_rights_and_the_old_one_ends(directory: TenantDirectory) -> None:
    old, born = directory.create_key("acme", ("infer", "upload"), description="the app", expires_at=time.time() + 60)
    new, newborn = directory.rotate_key(old.key_id)
    assert (new.tenant, new.scopes, new.description) == (old.tenant, old.scopes, old.description)
    assert new.expires_at is not None
    assert directory.snapshot.caller(born.text) is None
    assert directory.snapshot.caller(newborn.text) is not None
    with pytest.raises(ApiKeyNotFoundError):
        directory.rotate_key(old.key_id)


def test_rotation_with_overlap_lets_both_keys_work(directory: TenantDirectory) -> None:
    old, born = directory.create_key("acme", ("infer",))
    newborn = directory.rotate_key(old.key_id, overlap_s=60)[1]
    assert directory.snapshot.caller(born.text) is not None
    assert directory.snapshot.caller(newborn.text) is not None


@pytest.mark.parametrize(
    ("tenant", "scopes", "expires_in_s", "error"),
    [
        ("nobody", ("infer",), None, TenantNotFoundError),
        ("acme", (), None, InvalidRequestError),
        ("acme", ("admin",), None, InvalidRequestError),
        ("acme", ("infer", "metrics"), None, InvalidRequestError),
        ("acme", ("infer",), -1.0, InvalidRequestError),
    ],
)
def test_key_that_can_not_be_is_refused(
    directory: TenantDirectory,
    tenant: str,
    scopes: tuple[Scope, ...],
    expires_in_s: float | None,
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        directory.create_key(tenant, scopes, expires_at=None if expires_in_s is None else time.time() + expires_in_s)
    assert not directory.snapshot.keys


@pytest.mark.parametrize("name", ["", "shared", "Acme", "a/b", "..", "con", "x" * 65, "é"])
def test_tenant_needs_a_legal_name(directory: TenantDirectory, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        directory.create_tenant(name)


def test_tenant_name_can_be_taken_once(directory: TenantDirectory) -> None:
    with pytest.raises(TenantExistsError):
        directory.create_tenant("acme")


def test_limits_are_stored_and_replaced_as_a_whole(directory: TenantDirectory) -> None:
    big = 1 << 40
    directory.set_limits("acme", TenantLimits(tokens_per_minute=5, max_stored_bytes=big))
    assert directory.snapshot.tenants["acme"].limits == TenantLimits(tokens_per_minute=5, max_stored_bytes=big)
    directory.set_limits("acme", TenantLimits(max_sets=1))
    assert directory.snapshot.tenants["acme"].limits == TenantLimits(max_sets=1)
    with pytest.raises(TenantNotFoundError):
        directory.set_limits("nobody", TenantLimits())


def test_grant_lets_one_tenant_read_one_set(directory: TenantDirectory) -> None:
    directory.grant("acme", "haiku", "bank")
    directory.grant("acme", "haiku", "bank")
    snapshot = directory.snapshot
    assert snapshot.may_read("acme", "haiku", "bank")
    assert not snapshot.may_read("acme", "other", "bank")
    assert not snapshot.may_read("acme", "haiku", "thief")
    assert not snapshot.may_read("bank", "haiku", "acme")
    assert snapshot.granted_to("bank") == (("acme", "haiku"),)
    directory.withdraw("acme", "haiku", "bank")
    assert not directory.snapshot.may_read("acme", "haiku", "bank")


def test_withdrawing_all_grants_of_a_set_leaves_other_sets_alone(directory: TenantDirectory) -> None:
    for name, reader in (("haiku", "bank"), ("haiku", "shop"), ("other", "bank")):
        directory.grant("acme", name, reader)
    directory.withdraw("acme", "haiku")
    assert directory.snapshot.granted_to("bank") == (("acme", "other"),)
    assert directory.snapshot.granted_to("shop") == ()


def test_another_process_sees_changes_at_its_next_look(database_url: str) -> None:
    directory, other = (TenantDirectory.of_store(Path("unused"), database_url=database_url) for _ in range(2))
    directory.create_tenant("acme")
    other.open()
    assert not other.refresh()
    key, born = directory.create_key("acme", ("infer",))
    assert other.refresh()
    assert other.snapshot.caller(born.text) is not None
    other.revoke_key(key.key_id)
    assert directory.refresh()
    assert directory.snapshot.caller(born.text) is None
    other.close()
    directory.close()


def test_versions_are_read_before_the_snapshot_that_may_name_them(directory: TenantDirectory) -> None:
    seen: list[bool] = []
    directory.read_first(lambda: seen.append("bank" in directory.snapshot.tenants))
    directory.create_tenant("bank")
    assert seen == [False]
    assert not directory.refresh()
    assert seen == [False, True]


def test_snapshot_is_of_one_moment_while_others_write(database_url: str) -> None:
    directory, other = (TenantDirectory.of_store(Path("unused"), database_url=database_url) for _ in range(2))
    directory.open()
    directory.create_tenant("acme")
    engine = engine_of_url(database_url)
    with reading(engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM api_keys")).scalar_one() == 0
        other.open()
        other.create_tenant("bank")
        other.create_key("bank", ("infer",))
        assert set(read_snapshot(connection).tenants) == {SHARED, "acme"}
        assert not read_snapshot(connection).keys
    engine.dispose()
    directory.close()
    other.close()


def test_writers_of_many_servers_wait_for_each_other(database_url: str) -> None:
    directories = [TenantDirectory.of_store(Path("unused"), database_url=database_url) for _ in range(4)]
    directories[0].open()

    def create(number: int) -> None:
        directories[number % 4].create_tenant(f"tenant-{number}")

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(create, range(16)))
    for directory in directories:
        directory.refresh()
        assert len(directory.snapshot.tenants) == 1 + 16
        assert directory.snapshot.revision == 1 + 16
        directory.close()


def test_database_that_goes_away_and_comes_back_needs_no_restart(postgres: Postgres) -> None:
    directory = TenantDirectory.of_store(Path("unused"), database_url=postgres.empty_database())
    directory.create_tenant("acme")
    with psycopg.connect(postgres.conninfo, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    assert not directory.refresh()
    directory.create_tenant("bank")
    directory.close()


@pytest.mark.parametrize("description", ["\0", "x" * 300])
def test_text_that_postgresql_can_not_hold_is_the_clients_mistake(postgres: Postgres, description: str) -> None:
    directory = TenantDirectory.of_store(Path("unused"), database_url=postgres.empty_database())
    directory.open()
    with pytest.raises(InvalidRequestError, match="too long to be stored, or holds a NUL"):
        directory.create_key(SHARED, ("infer",), description=description)
    assert not directory.snapshot.keys
    directory.close()


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://user:secret@host/name", "sqlite://", "postgresql+asyncpg://user:secret@host/name"]
)
def test_url_of_another_database_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ConfigurationError, match="must be postgresql://") as caught:
        TenantDirectory.of_store(Path("unused"), database_url=url)
    assert "secret" not in str(caught.value)


def test_server_that_does_not_answer_is_named_without_its_password() -> None:
    url = "postgresql://reft:secret@127.0.0.1:1/name"
    directory = TenantDirectory.of_store(Path("unused"), database_url=url)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1.* port 1 failed") as caught:
        directory.open()
    assert "secret" not in str(caught.value)


def test_watch_survives_a_database_that_is_away(
    directory: TenantDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    born = directory.create_key("acme", ("infer",))[1]
    monkeypatch.setattr("reft_server.tenants.snapshot_database.REFRESH_S", 0.001)
    attempts = 0

    def fail() -> bool:
        nonlocal attempts
        attempts += 1
        if attempts == 3:
            raise asyncio.CancelledError
        raise StoreError("the disk is gone")

    monkeypatch.setattr(directory, "refresh", fail)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(directory.watch())
    assert caplog.text.count("tenants_unreadable reason=the disk is gone") == 2
    assert directory.snapshot.caller(born.text) is not None


def test_directory_that_can_not_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "tenants.sqlite3").write_bytes(b"no database" * 200)
    directory = TenantDirectory.of_store(tmp_path)
    with pytest.raises(StoreError, match="the database can't be used"):
        directory.open()
    directory.close()


def test_operator_is_there_from_the_start(directory: TenantDirectory) -> None:
    assert set(directory.snapshot.tenants) == {SHARED, "acme"}
