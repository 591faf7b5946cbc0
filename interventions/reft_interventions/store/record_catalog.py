"""The catalog in a store's folder: one JSON record per version, which is the truth, and an SQLite index of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from . import durable
from .catalog import CatalogTransaction
from .index import IndexDamagedError, IndexTransaction, StoreIndex
from .layout import StoreLayout
from .reconcile import read_all, sync_all, sync_name
from .records import StoredVersion, to_record

logger = logging.getLogger(__name__)


class RecordTransaction(IndexTransaction):
    """A transaction of the index that writes the records first."""

    def __init__(self, index: IndexTransaction, layout: StoreLayout) -> None:
        super().__init__(index.connection)
        self._layout = layout

    def last_version(self, tenant: str, name: str) -> int:
        """The highest number that has a record, readable or not."""
        return max(self._layout.record_numbers(tenant, name), default=0)

    def write(self, stored: StoredVersion, *, is_new: bool = False, after: tuple[Path, ...] = ()) -> StoredVersion:
        """Write the record, durably, then its row. See `CatalogTransaction.write`."""
        record = self._layout.record(stored.tenant, stored.name, stored.version)
        durable.make_folder(record.parent.parent)
        record.parent.mkdir(exist_ok=True)
        temporary = durable.temporary_path(self._layout.temporary, ".record")
        temporary.write_bytes(to_record(stored))
        durable.sync(*after, temporary, record.parent.parent)
        if is_new:
            durable.create_from(temporary, record)
        else:
            durable.move_file(temporary, record)
        self.put(stored)
        self.set_folder_mtime_ns(stored.tenant, stored.name, record.parent.stat().st_mtime_ns)
        return stored


class RecordCatalog(StoreIndex):
    """Answers from the index, which others on the same machine share: what they write is seen at once."""

    def __init__(self, layout: StoreLayout) -> None:
        super().__init__(layout.index)
        self._layout = layout

    @classmethod
    def open(cls, layout: StoreLayout) -> RecordCatalog:
        """Open the index, or build it again from the records where it is lost or damaged.

        Raises:
            StoreError: it can't be used, or was written by a newer release.
        """
        # One opener at a time: two that find the same damage must not set aside each other's fresh index.
        with durable.exclusive_lock(layout.lock):
            try:
                catalog = cls(layout)
            except IndexDamagedError as error:
                logger.warning("store_index_damaged rebuild=true reason=%s", error)
                layout.set_index_aside()
                catalog = cls(layout)
        try:
            sync_all(layout, catalog)
        except BaseException:
            catalog.close()
            raise
        return catalog

    @contextmanager
    def transaction(self, tenant: str = "", name: str | None = None) -> Iterator[RecordTransaction]:
        """A transaction in which the index agrees with the records of `name`."""
        with self.index_transaction() as index:
            if name is not None:
                sync_name(self._layout, index, tenant, name)
            yield RecordTransaction(index, self._layout)

    def refresh(self) -> bool:
        """The index is shared: there is nothing to look for."""
        return False

    def rebuild(self, transaction: CatalogTransaction) -> tuple[list[StoredVersion], int]:
        """Read every record again into the index."""
        assert isinstance(transaction, RecordTransaction)
        return read_all(self._layout, transaction)
