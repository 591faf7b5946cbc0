"""The database behind the directory: opened, made, and its errors typed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, create_engine, event, insert, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from reft_interventions.errors import StoreError
from reft_interventions.store import durable

from .model import SHARED
from .schema import METADATA, REVISION, TENANTS


def sqlite_engine(path: Path) -> Engine:
    """An SQLite file, made with mode 600 by `make_tables`."""
    engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 10.0})
    event.listen(engine, "connect", _use_write_ahead_log)
    return engine


def memory_engine() -> Engine:
    """Gone with the process."""
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def make_tables(engine: Engine) -> None:
    """Make the tables and rows that are missing.

    Raises:
        StoreError: the database can't be used.
    """
    with database_errors():
        _make_file(engine.url)
        with engine.begin() as connection:
            METADATA.create_all(connection)
            _insert_once(connection)


def _insert_once(connection: Connection) -> None:
    """The rows that every database has; another process may be at it too."""
    for table, values in ((TENANTS, {"name": SHARED, "created_at": time.time()}), (REVISION, {"id": 1, "revision": 1})):
        key = next(iter(table.primary_key.columns))
        if connection.execute(select(key).where(key == values[key.name])).first() is None:
            connection.execute(insert(table).values(values))


def _make_file(url: sqlalchemy.URL) -> None:
    if url.get_backend_name() == "sqlite" and url.database:
        durable.make_folder(Path(url.database).parent)
        with contextlib.suppress(FileExistsError):  # private from its first byte
            os.close(os.open(url.database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _use_write_ahead_log(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn what the database or the disk raises into a `StoreError`; broken constraints pass."""
    try:
        yield
    except IntegrityError:
        raise
    except (SQLAlchemyError, OSError) as error:
        raise StoreError(f"the tenants' database can't be used: {type(error).__name__}") from error
