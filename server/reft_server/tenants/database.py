"""The database behind the directory: opened, made, and its errors typed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, Table, create_engine, event, insert, select, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from reft_interventions.errors import StoreError
from reft_interventions.store import durable
from reft_server.errors import ConfigurationError, InvalidRequestError

from .migrations import upgrade
from .model import SHARED
from .schema import METADATA, REVISION, TENANTS

_CONNECT_TIMEOUT_S = 5
_STATEMENT_TIMEOUT_S = 10
"""Of a statement on a server, the wait for a lock included, and of the wait for SQLite's lock."""
_BEGIN = "reft_begin"
"""An option of a connection to SQLite: the statement that begins its transactions."""
_EXCLUSIVE_LOCK = 0x52654655
"""PostgreSQL's number for `exclusive`, next to that of the migrations."""


def engine_of_url(url: str) -> Engine:
    """PostgreSQL, or an SQLite file that `make_tables` makes with mode 600.

    Args:
        url: `postgresql://user:password@host:port/database`, or `sqlite:///path`; `sqlite:////path` from the root on.

    Raises:
        ConfigurationError: it is neither, or the driver is not installed. The message does not quote it: it may hold a
            password.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except SQLAlchemyError as error:
        raise _bad_url() from error
    if parsed.drivername == "sqlite" and parsed.database:
        return sqlite_engine(Path(parsed.database))
    if parsed.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return _postgresql_engine(parsed.set(drivername="postgresql+psycopg"))
    raise _bad_url()


def sqlite_engine(path: Path) -> Engine:
    """An SQLite file, made with mode 600 by `make_tables`."""
    url = sqlalchemy.URL.create("sqlite", database=str(path))
    engine = create_engine(url, connect_args={"timeout": float(_STATEMENT_TIMEOUT_S)})
    event.listen(engine, "connect", _use_write_ahead_log)
    event.listen(engine, "begin", _begin)
    return engine


def memory_engine() -> Engine:
    """Gone with the process."""
    return create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})


def _postgresql_engine(url: sqlalchemy.URL) -> Engine:
    options = f"-c statement_timeout={_STATEMENT_TIMEOUT_S}s -c timezone=UTC {url.query.get('options', '')}"
    try:
        return create_engine(
            url,
            pool_pre_ping=True,  # the server may have been restarted since
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "options": options.strip()},
        )
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "A PostgreSQL database needs its driver: pip install 'reft-serve[postgres]'.", param="database_url"
        ) from error


def _bad_url() -> ConfigurationError:
    return ConfigurationError(
        "--database-url must be postgresql://user:password@host:port/database or sqlite:///path.", param="database_url"
    )


def make_tables(engine: Engine) -> None:
    """Bring the tables up to date, and add the rows that every database has. Others may be at it too.

    Raises:
        StoreError: the database can't be used, or was written by a newer release.
    """
    try:
        _make_file(engine.url)
    except OSError as error:
        raise StoreError(f"the database's file can't be made: {error.strerror}") from error
    with database_errors(quotes=True), engine.connect() as connection:
        connection.execution_options(**{_BEGIN: "BEGIN IMMEDIATE"})
        if engine.url.database in (None, "", ":memory:"):
            METADATA.create_all(connection)  # the same, and faster; nobody has older tables in memory
        else:
            upgrade(connection)
        _insert_once(connection, TENANTS, name=SHARED, created_at=time.time())
        _insert_once(connection, REVISION, id=1, revision=1)
        connection.commit()


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection whose selects all see the database at one moment."""
    with database_errors(), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


@contextmanager
def exclusive(engine: Engine) -> Iterator[None]:
    """One holder at a time, over all servers on a database; it is freed when its process dies.

    For a change of which no single transaction is the whole, such as one of the store and of a table.

    Raises:
        StoreError: the database can't be used, or another held it for too long.
    """
    if engine.dialect.name == "postgresql":
        with database_errors(), engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _EXCLUSIVE_LOCK})
            yield
    elif engine.url.database in (None, "", ":memory:"):
        yield  # nobody else has it
    else:
        with durable.exclusive_lock(Path(f"{engine.url.database}.lock")):
            yield


def _insert_once(connection: Connection, table: Table, **values: object) -> None:
    """Insert a row that every database has, unless it is there, by the first column of its key."""
    key = next(iter(table.primary_key.columns))
    if connection.execute(select(key).where(key == values[key.name])).first() is None:
        connection.execute(insert(table).values(values))


def _make_file(url: sqlalchemy.URL) -> None:
    if url.get_backend_name() == "sqlite" and url.database:
        durable.make_folder(Path(url.database).parent)
        with contextlib.suppress(FileExistsError):  # private from its first byte
            os.close(os.open(url.database, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def _begin(connection: Connection) -> None:
    # Python's driver begins at the first write only: selects before it would each see another moment.
    connection.exec_driver_sql(connection.get_execution_options().get(_BEGIN, "BEGIN"))


def _use_write_ahead_log(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


@contextmanager
def database_errors(*, quotes: bool = False) -> Iterator[None]:
    """Turn what the database raises into a `StoreError`; broken constraints pass.

    A value that it can't hold is an `InvalidRequestError`.

    Args:
        quotes: the database's own words are for the operator who starts it; a client gets the error's type.
    """
    try:
        yield
    except IntegrityError:
        raise
    except DataError as error:  # PostgreSQL holds no NUL, and no text longer than its column
        raise InvalidRequestError("A text is too long to be stored, or holds a NUL character") from error
    except DBAPIError as error:
        reason = str(error.orig).partition("\n")[0] if quotes else type(error).__name__
        raise StoreError(f"the database can't be used: {reason}") from error
    except SQLAlchemyError as error:
        raise StoreError(f"the database can't be used: {type(error).__name__}") from error
