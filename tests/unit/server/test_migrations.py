"""The migrations: they make what the models say, on every database, from every older state, whoever else is at it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from reft_interventions.errors import StoreError
from reft_server.tenants import TenantDirectory
from reft_server.tenants.database import engine_of_url, make_tables
from reft_server.tenants.migrations import alembic_config, upgrade
from reft_server.tenants.migrations.schemas import all_tables


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An empty database of each kind."""
    engine = engine_of_url(database_url)
    yield engine
    engine.dispose()


def revisions(connection: sqlalchemy.Connection) -> list[str]:
    """All of them, the first one first."""
    script = ScriptDirectory.from_config(alembic_config(connection))
    return [found.revision for found in script.walk_revisions()][::-1]


def test_migrations_make_what_the_models_say(engine: Engine) -> None:
    make_tables(engine)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), all_tables())
    assert not differences, "run `make migration MESSAGE='…'`: see reft_server/tenants/migrations/__init__.py"


def test_migrations_are_numbered_in_one_line(engine: Engine) -> None:
    with engine.connect() as connection:
        found = revisions(connection)
        assert len(ScriptDirectory.from_config(alembic_config(connection)).get_heads()) == 1
    assert found == [f"{number:04}" for number in range(1, len(found) + 1)]


def test_database_of_every_older_release_is_brought_up_to_date(database_url: str, engine: Engine) -> None:
    with engine.begin() as connection:
        older = revisions(connection)[:-1]
    for revision in older:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), revision)
    directory = TenantDirectory.of_store(Path("unused"), database_url=database_url)
    directory.open()
    directory.create_tenant("acme")
    directory.close()
    test_migrations_make_what_the_models_say(engine)


def test_file_from_before_the_migrations_keeps_its_rows(tmp_path: Path) -> None:
    engine = engine_of_url(f"sqlite:///{tmp_path / 'tenants.sqlite3'}")
    with engine.begin() as connection:
        command.upgrade(alembic_config(connection), "0001")
    engine.dispose()
    with sqlite3.connect(tmp_path / "tenants.sqlite3") as old:
        old.execute("DROP TABLE alembic_version")
        old.execute("INSERT INTO tenants (name, created_at, max_sets) VALUES ('acme', 1.0, 7)")
    old.close()
    directory = TenantDirectory.of_store(tmp_path)
    directory.open()
    assert directory.snapshot.tenants["acme"].limits.max_sets == 7
    directory.close()


def test_database_of_a_newer_release_is_refused_and_left_alone(engine: Engine) -> None:
    make_tables(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"written by a newer release \(revision 9999\)"):
        make_tables(engine)


def test_migration_that_fails_leaves_nothing_behind(engine: Engine) -> None:
    with engine.connect() as connection:
        upgrade(connection)
        connection.rollback()
        assert not sqlalchemy.inspect(connection).get_table_names()


def test_servers_that_start_together_migrate_once(database_url: str) -> None:
    directories = [TenantDirectory.of_store(Path("unused"), database_url=database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as executor:
        list(executor.map(TenantDirectory.open, directories))
    assert {directory.snapshot.revision for directory in directories} == {1}
    for directory in directories:
        directory.close()
