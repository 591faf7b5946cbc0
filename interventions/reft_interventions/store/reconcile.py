"""Bring the index in line with the records, which are the truth."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..errors import InvalidInterventionNameError, StoreError
from .index import IndexTransaction, StoreIndex
from .layout import StoreLayout
from .names import check_name
from .records import StoredVersion, from_record

logger = logging.getLogger(__name__)


def sync_all(layout: StoreLayout, index: StoreIndex) -> None:
    """Read again the names whose folder changed behind the index's back: a crash, a restored backup, a lost index.

    Those of every tenant. One `stat` per name; no record and no set is read when nothing changed.
    """
    known = index.folder_mtimes()
    found: dict[tuple[str, str], int] = {}
    for tenant in layout.tenants():
        with os.scandir(layout.namespace(tenant)) as entries:
            found |= {(tenant, entry.name): entry.stat().st_mtime_ns for entry in entries if entry.is_dir()}
    changed = [one for one in found.keys() | known.keys() if found.get(one) != known.get(one)]
    changed = [(tenant, name) for tenant, name in changed if _is_name(name)]
    if not changed:
        return
    with index.index_transaction() as transaction:
        for tenant, name in changed:
            sync_name(layout, transaction, tenant, name)
    logger.info("store_index_synced names=%d", len(changed))


def sync_name(layout: StoreLayout, transaction: IndexTransaction, tenant: str, name: str) -> None:
    """Make the index agree with the records of one name."""
    folder = layout.namespace(tenant) / name
    numbers = layout.record_numbers(tenant, name)
    indexed = [stored.version for stored in transaction.records(tenant, name)]
    # The numbers are compared too: two writes within one tick of the file system's clock leave the same mtime.
    mtime_ns = folder.stat().st_mtime_ns if folder.is_dir() else None
    if indexed != numbers or transaction.folder_mtime_ns(tenant, name) != mtime_ns:
        _read_name(layout, transaction, tenant, name, mtime_ns)


def read_all(layout: StoreLayout, transaction: IndexTransaction) -> tuple[list[StoredVersion], int]:
    """Read every record again; returns those read, and how many could not be."""
    for tenant, name in transaction.names():
        transaction.forget(tenant, name)
    found: list[StoredVersion] = []
    num_unreadable = 0
    for tenant, folder in _name_folders(layout):
        records, unreadable = _read_name(layout, transaction, tenant, folder.name, folder.stat().st_mtime_ns)
        found += records
        num_unreadable += unreadable
    return found, num_unreadable


def _read_name(
    layout: StoreLayout, transaction: IndexTransaction, tenant: str, name: str, mtime_ns: int | None
) -> tuple[list[StoredVersion], int]:
    """Replace a name's rows by its records; returns those read, and how many could not be."""
    transaction.forget(tenant, name)
    records: list[StoredVersion] = []
    num_unreadable = 0
    for version in layout.record_numbers(tenant, name):
        try:
            data = layout.record(tenant, name, version).read_bytes()
            stored = from_record(data, name=name, version=version, tenant=tenant)
        except StoreError as error:
            logger.warning("store_record_unreadable reference=%s@%d reason=%s", name, version, error.message)
            num_unreadable += 1
            continue
        transaction.put(stored)
        records.append(stored)
    if mtime_ns is not None:
        transaction.set_folder_mtime_ns(tenant, name, mtime_ns)
    return records, num_unreadable


def _name_folders(layout: StoreLayout) -> list[tuple[str, Path]]:
    """The folder of every name, with its tenant."""
    return [
        (tenant, path)
        for tenant in layout.tenants()
        for path in sorted(layout.namespace(tenant).iterdir())
        if path.is_dir() and _is_name(path.name)
    ]


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidInterventionNameError:
        return False
    return True
