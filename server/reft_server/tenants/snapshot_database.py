"""A database that several processes change, and the snapshot of it that this one answers from."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine, select, update

from reft_client.types import AuditEntry
from reft_interventions.errors import StoreError

from . import audit
from .database import database_errors, exclusive, make_tables, reading
from .schema import REVISION
from .snapshot import EMPTY, Snapshot, read_snapshot

logger = logging.getLogger(__name__)

_PRUNE_INTERVAL_S = 86_400.0
REFRESH_S = 1.0
"""How often a server looks for what others, or the command line, have changed."""


class SnapshotDatabase:
    """Every request is answered from `snapshot`, which is immutable and replaced as a whole.

    Writes are durable, and in this process's snapshot, when they return; `watch` brings in those of other processes.
    All methods may be called from any thread.

    Attributes:
        actor: who acts where no request is being served, for the audit log.
        audit_retention_s: how long the audit log keeps an entry at least; None = for ever.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.actor = audit.COMMAND_LINE
        self.audit_retention_s: float | None = None
        self._lock = threading.RLock()
        self._is_open = False
        self._read_versions: Callable[[], object] = _read_nothing
        self.snapshot: Snapshot = EMPTY

    def open(self) -> None:
        """Make the tables that are missing, and read them; calling twice is fine.

        Raises:
            StoreError: the database can't be used.
        """
        if self._is_open:
            return
        make_tables(self._engine)
        self._is_open = True
        self.refresh()

    def close(self) -> None:
        """Drop the connections; calling twice is fine."""
        self._engine.dispose()
        self._is_open = False

    def refresh(self) -> bool:
        """Read the tables again if they have changed; says whether they had.

        Raises:
            StoreError: the database can't be read.
        """
        with self._lock:
            with reading(self._engine) as connection:
                revision = connection.execute(select(REVISION.c.revision)).scalar_one()
                newer = None if revision == self.snapshot.revision else read_snapshot(connection)
            self._read_versions()
            if newer is None:
                return False
            self.snapshot = newer
        return True

    def read_first(self, read_versions: Callable[[], object]) -> None:
        """Have the store look for versions of other servers whenever this looks, and before a newer snapshot is used.

        Otherwise an alias or a route could name a version that this server does not know yet.
        """
        self._read_versions = read_versions

    async def watch(self) -> None:
        """Refresh for ever. While the database can't be read, the last snapshot stays in use."""
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                if await asyncio.to_thread(self.refresh):
                    logger.info("tenants_refreshed revision=%d", self.snapshot.revision)
            except StoreError as error:
                logger.error("tenants_unreadable reason=%s", error.message)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for what the snapshot does not hold; its selects all see one moment.

        Raises:
            StoreError: the database can't be read.
        """
        self.open()
        with self._lock, reading(self._engine) as connection:
            yield connection

    @contextmanager
    def writing(self, *, is_in_snapshot: bool = False) -> Iterator[Connection]:
        """A transaction for what the audit log does not hold; others notice it where it `is_in_snapshot`.

        Raises:
            StoreError: the database can't be used; nothing was changed.
        """
        self.open()
        with self._lock:
            with database_errors(), self._engine.begin() as connection:
                if is_in_snapshot:
                    connection.execute(update(REVISION).values(revision=REVISION.c.revision + 1))
                yield connection
            if is_in_snapshot:
                self.refresh()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Alone among all servers, and with what they have written so far, in the snapshot and in the store.

        Raises:
            StoreError: the database can't be used, or another was alone for too long.
        """
        self.open()
        with exclusive(self._engine):
            self.refresh()
            yield

    @contextmanager
    def change(self, action: str, tenant: str, target: str, /, **details: object) -> Iterator[Connection]:
        """A transaction that others will notice; afterwards the snapshot has it, and the audit log an entry.

        Args:
            action, tenant, target, details: for the audit log; see `audit.record`.

        Raises:
            StoreError: the database can't be used; nothing was changed.
        """
        with self.writing(is_in_snapshot=True) as connection:
            yield connection
            audit.record(connection, self.actor, action, tenant, target, details)

    @contextmanager
    def recording(self, action: str, tenant: str, target: str, /, **details: object) -> Iterator[None]:
        """For a change outside of the database: the audit log gets its entry before, so that none goes without.

        If the change fails, a second entry says so: `<action>.failed`.

        Raises:
            StoreError: the database can't be used; the change was not begun.
        """
        self._record(action, tenant, target, details)
        try:
            yield
        except BaseException as error:
            try:
                self._record(f"{action}.failed", tenant, target, {**details, "error": type(error).__name__})
            except StoreError as unrecorded:
                logger.error("audit_incomplete action=%s.failed reason=%s", action, unrecorded.message)
            raise

    def _record(self, action: str, tenant: str, target: str, details: dict[str, object]) -> None:
        with self.writing() as connection:
            audit.record(connection, self.actor, action, tenant, target, details)

    def audit_entries(self, query: audit.AuditQuery) -> tuple[AuditEntry, ...]:
        """What the audit log holds.

        Raises:
            StoreError: the database can't be read.
        """
        with self.reading() as connection:
            return audit.read(connection, query)

    def prune_audit_log(self, before: float, write: Callable[[str], object] = len) -> int:
        """Remove the entries older than a moment, Unix seconds; returns how many went. See `audit.prune`.

        Raises:
            StoreError: the database can't be used; what went before has its entry.
        """
        with self.reading() as connection:
            up_to = audit.last_older(connection, before)
        num_pruned, num = 0, 1 if up_to else 0
        while num:
            with self.writing(is_in_snapshot=True) as connection:
                num = audit.prune(connection, self.actor, up_to, write)
            num_pruned += num
        if num_pruned:
            logger.info("audit_log_pruned num=%d", num_pruned)
        return num_pruned

    async def keep_audit_log_short(self) -> None:
        """Once a day, for ever: remove what is older than `audit_retention_s`, where that is set."""
        while True:
            if (retention_s := self.audit_retention_s) is not None:
                try:
                    await asyncio.to_thread(self.prune_audit_log, time.time() - retention_s)
                except StoreError as error:
                    logger.error("audit_log_not_pruned reason=%s", error.message)
            await asyncio.sleep(_PRUNE_INTERVAL_S)


def _read_nothing() -> None:
    """There is no store whose versions change elsewhere."""
