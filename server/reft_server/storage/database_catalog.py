"""The catalog of versions in a database that several servers share: it is the truth, and memory answers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from sqlalchemy import Connection, Engine, Row, Select, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from reft_interventions.store import CatalogTransaction, StoredVersion, durable
from reft_server.tenants.database import database_errors, make_tables, reading

from .schema import VERSIONS, VERSIONS_REVISION
from .versions_in_memory import VersionsInMemory

_LIVING = VERSIONS.c.deleted_at.is_(None)
_CAN_BE_RESTORED = VERSIONS.c.deleted_at.is_not(None) & VERSIONS.c.purged_at.is_(None)
_IN_ORDER = (VERSIONS.c.deleted_at, VERSIONS.c.name, VERSIONS.c.version)


class DatabaseTransaction:
    """What a writer sees and does; see `CatalogTransaction`. Others see it when it is committed."""

    def __init__(self, connection: Connection, revision: int) -> None:
        self._connection = connection
        self._revision = revision

    def newest(self, tenant: str, name: str) -> StoredVersion | None:
        """The newest living version of a name."""
        found = self._all(_of_name(tenant, name).where(_LIVING).order_by(VERSIONS.c.version.desc()).limit(1))
        return found[0] if found else None

    def last_version(self, tenant: str, name: str) -> int:
        """The highest number that a name ever used, or 0."""
        of_name = _of_name(tenant, name).with_only_columns(func.coalesce(func.max(VERSIONS.c.version), 0))
        return int(self._connection.execute(of_name).scalar_one())

    def records(self, tenant: str, name: str) -> list[StoredVersion]:
        """All versions of a name, deleted and purged ones too, oldest first."""
        return self._all(_of_name(tenant, name).order_by(VERSIONS.c.version))

    def all(self) -> list[StoredVersion]:
        """Every version of every tenant."""
        return self._all(select(VERSIONS))

    def tombstones(self, tenant: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one tenant or of all, oldest deletion first."""
        found = select(VERSIONS).where(_CAN_BE_RESTORED).order_by(*_IN_ORDER)
        return self._all(found if tenant is None else found.where(VERSIONS.c.tenant == tenant))

    def usage(self, tenant: str) -> tuple[int, int]:
        """How many names of a tenant have a living version, and the bytes of all living versions together."""
        columns = (func.count(VERSIONS.c.name.distinct()), func.coalesce(func.sum(VERSIONS.c.size_bytes), 0))
        row = self._connection.execute(select(*columns).where(VERSIONS.c.tenant == tenant, _LIVING)).one()
        return int(row[0]), int(row[1])

    def is_content_in_use(self, content_hash: str) -> bool:
        """Whether any version that lives or can be restored has this content."""
        found = select(VERSIONS.c.version).where(
            VERSIONS.c.content_hash == content_hash, VERSIONS.c.purged_at.is_(None)
        )
        return self._connection.execute(found.limit(1)).first() is not None

    def write(self, stored: StoredVersion, *, is_new: bool = False, after: tuple[Path, ...] = ()) -> StoredVersion:
        """Insert or update a row; see `CatalogTransaction.write`."""
        if after:
            durable.sync(*after)
        values = {**asdict(stored), "revision": self._revision}
        if not is_new:
            key = (VERSIONS.c.tenant == stored.tenant, VERSIONS.c.name == stored.name)
            self._connection.execute(update(VERSIONS).where(*key, VERSIONS.c.version == stored.version).values(values))
            return stored
        try:
            self._connection.execute(insert(VERSIONS).values(values))
        except IntegrityError as error:
            raise FileExistsError(stored.reference) from error
        return stored

    def _all(self, query: Select[tuple[object, ...]]) -> list[StoredVersion]:
        return [_stored(row) for row in self._connection.execute(query)]


class DatabaseCatalog:
    """Reads are answered from memory: what this process has written at once, what others have after a `refresh`.

    Args:
        engine: disposed of at the end.

    Raises:
        StoreError: the database can't be used, or was written by a newer release.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()  # of the transactions and refreshes of this process
        self._revision = 0
        self._memory = VersionsInMemory()
        make_tables(engine)
        self.refresh()

    def close(self) -> None:
        """Drop the connections; calling twice is fine."""
        self._engine.dispose()

    @contextmanager
    def transaction(self, tenant: str = "", name: str | None = None) -> Iterator[DatabaseTransaction]:
        """At most one writer at a time, over all servers; afterwards memory has what it wrote."""
        del tenant, name
        with self._lock:
            with database_errors(), self._engine.begin() as connection:
                raised = update(VERSIONS_REVISION).values(revision=VERSIONS_REVISION.c.revision + 1)
                revision = connection.execute(raised.returning(VERSIONS_REVISION.c.revision)).scalar_one()
                yield DatabaseTransaction(connection, revision)
            self.refresh()

    def refresh(self) -> bool:
        """Read the rows that were written since the last look; says whether there were any."""
        with self._lock, reading(self._engine) as connection:
            revision = connection.execute(select(VERSIONS_REVISION.c.revision)).scalar_one()
            if revision == self._revision:
                return False
            rows = connection.execute(select(VERSIONS).where(VERSIONS.c.revision > self._revision))
            written = [_stored(row) for row in rows]
            self._memory = self._memory.with_versions(written)
            self._revision = revision
        return bool(written)

    def rebuild(self, transaction: CatalogTransaction) -> tuple[list[StoredVersion], int]:
        """Every row; the database keeps itself whole."""
        assert isinstance(transaction, DatabaseTransaction)
        found = transaction.all()
        self._memory = VersionsInMemory().with_versions(found)
        return found, 0

    def newest(self, tenant: str, name: str) -> StoredVersion | None:
        """The newest living version of a name."""
        living = self._memory.living(tenant, name)
        return living[-1] if living else None

    def version(self, tenant: str, name: str, version: int) -> StoredVersion | None:
        """One version, living or deleted."""
        return next((stored for stored in self._memory.all(tenant, name) if stored.version == version), None)

    def by_content(self, tenant: str, name: str, hash_prefix: str) -> list[StoredVersion]:
        """The living versions of a name whose content hash begins so, newest first."""
        living = reversed(self._memory.living(tenant, name))
        return [stored for stored in living if stored.content_hash.startswith(hash_prefix)]

    def versions(self, tenant: str, name: str) -> list[StoredVersion]:
        """The living versions of a name, oldest first."""
        return self._memory.living(tenant, name)

    def tombstones(self, tenant: str, name: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one name or of all, oldest deletion first."""
        return self._memory.tombstones(tenant, name)

    def list_newest(self, tenant: str) -> list[StoredVersion]:
        """The newest living version of every name, by name."""
        return self._memory.list_newest(tenant)

    def counts(self) -> tuple[int, int]:
        """How many names, of all tenants, have a living version, and how many living versions there are."""
        return self._memory.counts()

    def similar_names(self, tenant: str, name: str) -> list[str]:
        """Living names of about the same length, for a suggestion; a bounded number."""
        return self._memory.similar_names(tenant, name)

    def has_content(self, tenant: str, name: str, content_hash: str) -> bool:
        """Whether a version of the name, living or deleted, has or had this content."""
        return any(stored.content_hash == content_hash for stored in self._memory.all(tenant, name))


def _of_name(tenant: str, name: str) -> Select[tuple[object, ...]]:
    return select(VERSIONS).where(VERSIONS.c.tenant == tenant, VERSIONS.c.name == name)


def _stored(row: Row[tuple[object, ...]]) -> StoredVersion:
    values = dict(row._mapping)
    del values["revision"]
    return StoredVersion(**values)
