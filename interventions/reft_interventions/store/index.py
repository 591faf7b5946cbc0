"""The SQLite index of the records: fast look-ups, and the lock that orders writers across threads and processes.

Nothing lives only here: the index can be thrown away and read again from the records.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError
from .records import StoredVersion

SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 10.0

# `tenant` is '' in a store without tenants.
_SCHEMA = (
    """CREATE TABLE versions (
        tenant TEXT NOT NULL DEFAULT '', name TEXT NOT NULL, version INTEGER NOT NULL, content_hash TEXT NOT NULL,
        size_bytes INTEGER NOT NULL, created_at REAL NOT NULL, manifest_json TEXT NOT NULL, deleted_at REAL,
        purged_at REAL, PRIMARY KEY (tenant, name, version))""",
    "CREATE INDEX versions_by_content ON versions (content_hash)",
    """CREATE TABLE names (
        tenant TEXT NOT NULL DEFAULT '', name TEXT NOT NULL, folder_mtime_ns INTEGER NOT NULL,
        PRIMARY KEY (tenant, name))""",
)
_COLUMNS = "name, version, content_hash, size_bytes, created_at, manifest_json, deleted_at, tenant, purged_at"
_CAN_BE_RESTORED = "deleted_at IS NOT NULL AND purged_at IS NULL"
_MAX_SUGGESTION_CANDIDATES = 200


class IndexDamagedError(Exception):
    """The file is not a healthy index of this schema: throw it away and rebuild. Never leaves the store."""


class StoreIndex:
    """Two connections to the index: reads never wait for a writer, neither here nor in another process.

    Raises:
        IndexDamagedError: on opening; the file is corrupt or of an older schema.
        StoreError: on opening, the file is of a newer schema; later, SQLite reports an error.
    """

    def __init__(self, path: Path) -> None:
        self._read_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._reader = self._writer = _connect(path)
        try:
            _prepare(self._writer)
            self._reader = _connect(path)
        except BaseException:
            self._writer.close()
            raise

    def close(self) -> None:
        with self._read_lock, self._write_lock:
            self._reader.close()
            self._writer.close()

    @contextmanager
    def index_transaction(self) -> Iterator[IndexTransaction]:
        """A write transaction; at most one at a time over all threads and processes.

        Raises:
            StoreError: another writer held the lock for `BUSY_TIMEOUT_S`, or SQLite failed.
        """
        with self._write_lock, _store_errors():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield IndexTransaction(self._writer)
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:  # SQLite rolls some failures back itself
                    self._writer.execute("ROLLBACK")

    def newest(self, tenant: str, name: str) -> StoredVersion | None:
        """The newest living version of a name."""
        return self._first(tenant, "name = ? AND deleted_at IS NULL ORDER BY version DESC LIMIT 1", (name,))

    def version(self, tenant: str, name: str, version: int) -> StoredVersion | None:
        """One version, living or deleted."""
        return self._first(tenant, "name = ? AND version = ?", (name, version))

    def by_content(self, tenant: str, name: str, hash_prefix: str) -> list[StoredVersion]:
        """The living versions of a name whose content hash begins so, newest first."""
        where = "name = ? AND deleted_at IS NULL AND substr(content_hash, 1, ?) = ? ORDER BY version DESC"
        return self._all(tenant, where, (name, len(hash_prefix), hash_prefix))

    def versions(self, tenant: str, name: str) -> list[StoredVersion]:
        """The living versions of a name, oldest first."""
        return self._all(tenant, "name = ? AND deleted_at IS NULL ORDER BY version", (name,))

    def tombstones(self, tenant: str, name: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one name or of all, oldest deletion first."""
        where = f"{_CAN_BE_RESTORED} AND (? IS NULL OR name = ?) ORDER BY deleted_at, name, version"
        return self._all(tenant, where, (name, name))

    def list_newest(self, tenant: str) -> list[StoredVersion]:
        """The newest living version of every name, by name."""
        newest = "SELECT max(version) FROM versions WHERE tenant = v.tenant AND name = v.name AND deleted_at IS NULL"
        return self._all(tenant, f"deleted_at IS NULL AND version = ({newest}) ORDER BY name", ())

    def counts(self) -> tuple[int, int]:
        """How many names, of all tenants, have a living version, and how many living versions there are."""
        query = "SELECT count(DISTINCT tenant || '/' || name), count(*) FROM versions WHERE deleted_at IS NULL"
        with self._read_lock, _store_errors():
            row = self._reader.execute(query).fetchone()
        return int(row[0]), int(row[1])

    def similar_names(self, tenant: str, name: str) -> list[str]:
        """Living names of about the same length, for a suggestion; a bounded number."""
        query = (
            "SELECT DISTINCT name FROM versions WHERE tenant = ? AND deleted_at IS NULL "
            "ORDER BY abs(length(name) - ?), name LIMIT ?"
        )
        with self._read_lock, _store_errors():
            rows = self._reader.execute(query, (tenant, len(name), _MAX_SUGGESTION_CANDIDATES)).fetchall()
        return [str(row[0]) for row in rows]

    def has_content(self, tenant: str, name: str, content_hash: str) -> bool:
        """Whether a version of the name, living or deleted, has or had this content."""
        return self._first(tenant, "name = ? AND content_hash = ? LIMIT 1", (name, content_hash)) is not None

    def folder_mtimes(self) -> dict[tuple[str, str], int]:
        """For each (tenant, name) the modification time of its folder of records when the index last read it, ns."""
        with self._read_lock, _store_errors():
            rows = self._reader.execute("SELECT tenant, name, folder_mtime_ns FROM names").fetchall()
        return {(str(tenant), str(name)): int(mtime) for tenant, name, mtime in rows}

    def _first(self, tenant: str, where: str, values: Sequence[str | int | None]) -> StoredVersion | None:
        rows = self._all(tenant, where, values)
        return rows[0] if rows else None

    def _all(self, tenant: str, where: str, values: Sequence[str | int | None]) -> list[StoredVersion]:
        query = f"SELECT {_COLUMNS} FROM versions AS v WHERE tenant = ? AND {where}"
        with self._read_lock, _store_errors():
            rows = self._reader.execute(query, (tenant, *values)).fetchall()
        return [StoredVersion(*row) for row in rows]


class IndexTransaction:
    """What a writer does while it holds the lock."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def newest(self, tenant: str, name: str) -> StoredVersion | None:
        """The newest living version of a name."""
        versions = [stored for stored in self.records(tenant, name) if stored.deleted_at is None]
        return versions[-1] if versions else None

    def records(self, tenant: str, name: str) -> list[StoredVersion]:
        """All versions of a name, deleted ones too, oldest first."""
        query = f"SELECT {_COLUMNS} FROM versions WHERE tenant = ? AND name = ? ORDER BY version"
        return [StoredVersion(*row) for row in self.connection.execute(query, (tenant, name)).fetchall()]

    def usage(self, tenant: str) -> tuple[int, int]:
        """How many names of a tenant have a living version, and the bytes of all living versions together."""
        query = "SELECT count(DISTINCT name), coalesce(sum(size_bytes), 0) FROM versions WHERE tenant = ?"
        row = self.connection.execute(f"{query} AND deleted_at IS NULL", (tenant,)).fetchone()
        return int(row[0]), int(row[1])

    def tombstones(self, tenant: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one tenant or of all, oldest deletion first."""
        query = f"SELECT {_COLUMNS} FROM versions WHERE {_CAN_BE_RESTORED} AND (? IS NULL OR tenant = ?)"
        rows = self.connection.execute(f"{query} ORDER BY deleted_at, name, version", (tenant, tenant)).fetchall()
        return [StoredVersion(*row) for row in rows]

    def folder_mtime_ns(self, tenant: str, name: str) -> int | None:
        """See `StoreIndex.folder_mtimes`; None for an unknown name."""
        query = "SELECT folder_mtime_ns FROM names WHERE tenant = ? AND name = ?"
        row = self.connection.execute(query, (tenant, name)).fetchone()
        return None if row is None else int(row[0])

    def put(self, stored: StoredVersion) -> None:
        """Insert or replace one version."""
        values = (
            stored.name,
            stored.version,
            stored.content_hash,
            stored.size_bytes,
            stored.created_at,
            stored.manifest_json,
            stored.deleted_at,
            stored.tenant,
            stored.purged_at,
        )
        self.connection.execute(
            f"INSERT OR REPLACE INTO versions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values
        )

    def set_folder_mtime_ns(self, tenant: str, name: str, mtime_ns: int) -> None:
        self.connection.execute(
            "INSERT OR REPLACE INTO names (tenant, name, folder_mtime_ns) VALUES (?, ?, ?)", (tenant, name, mtime_ns)
        )

    def forget(self, tenant: str, name: str) -> None:
        """Drop every row of a name."""
        self.connection.execute("DELETE FROM versions WHERE tenant = ? AND name = ?", (tenant, name))
        self.connection.execute("DELETE FROM names WHERE tenant = ? AND name = ?", (tenant, name))

    def names(self) -> list[tuple[str, str]]:
        """Every (tenant, name)."""
        rows = self.connection.execute("SELECT tenant, name FROM names UNION SELECT tenant, name FROM versions")
        return [(str(tenant), str(name)) for tenant, name in rows.fetchall()]

    def is_content_in_use(self, content_hash: str) -> bool:
        """Whether any version that lives or can be restored has this content."""
        query = "SELECT 1 FROM versions WHERE content_hash = ? AND purged_at IS NULL LIMIT 1"
        return self.connection.execute(query, (content_hash,)).fetchone() is not None


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StoreError(f"the index of the intervention store failed: {error}") from error


def _connect(path: Path) -> sqlite3.Connection:
    # isolation_level=None: transactions are explicit. The locks above make sharing between threads safe.
    try:
        return sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise StoreError(f"the index {path.name} of the intervention store can't be opened: {error}") from error


def _prepare(connection: sqlite3.Connection) -> None:
    """Create the schema in a new file, or check the one that is there."""
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # The records are the truth and are synced one by one; the index may lose its last commits to a power cut.
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            _check_schema(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
        if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
            raise IndexDamagedError("quick_check found damage")
    except sqlite3.OperationalError as error:
        raise StoreError(f"the index of the intervention store can't be used: {error}") from error
    except sqlite3.DatabaseError as error:
        raise IndexDamagedError(str(error)) from error


def _check_schema(connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
    if found == 0 and tables == 0:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    elif found > SCHEMA_VERSION:
        raise StoreError(f"the store was written by a newer release (schema {found}, this one reads {SCHEMA_VERSION})")
    elif found < SCHEMA_VERSION:
        raise IndexDamagedError(f"schema {found}, expected {SCHEMA_VERSION}")
