"""Delete, restore and purge: what happens to the records, and when a file goes.

A deleted version is a tombstone: its record says so, its file stays, and it can be restored. A purged one is only a
number that is taken. Each step is one record, replaced atomically; a file goes after the last record that needs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from . import durable
from .index import IndexTransaction
from .layout import StoreLayout
from .records import StoredVersion, to_record


def write_record(
    layout: StoreLayout,
    transaction: IndexTransaction,
    stored: StoredVersion,
    *,
    is_new: bool = False,
    after: tuple[Path, ...] = (),
) -> StoredVersion:
    """Write a record, visible only once the paths in `after`, which it needs, are on the disk.

    Raises:
        FileExistsError: `is_new`, and the number is taken.
    """
    record = layout.record(stored.tenant, stored.name, stored.version)
    durable.make_folder(record.parent.parent)
    record.parent.mkdir(exist_ok=True)
    temporary = durable.temporary_path(layout.temporary, ".record")
    temporary.write_bytes(to_record(stored))
    durable.sync(*after, temporary, record.parent.parent)
    if is_new:
        durable.create_from(temporary, record)
    else:
        durable.move_file(temporary, record)
    transaction.put(stored)
    transaction.set_folder_mtime_ns(stored.tenant, stored.name, record.parent.stat().st_mtime_ns)
    return stored


def bury(
    layout: StoreLayout, transaction: IndexTransaction, doomed: Iterable[StoredVersion], *, is_final: bool
) -> tuple[StoredVersion, ...]:
    """Delete living versions; with `is_final` their files go too, unless another version has the same content.

    Oldest first: a crash half-way leaves the name pointing where it did.
    """
    now = time.time()
    buried = [stored.deleted(now) for stored in sorted(doomed, key=lambda stored: stored.version)]
    if is_final:
        return purge(layout, transaction, buried)
    return tuple(write_record(layout, transaction, stored) for stored in buried)


def revive(
    layout: StoreLayout, transaction: IndexTransaction, tombstones: Iterable[StoredVersion]
) -> tuple[StoredVersion, ...]:
    """Make tombstones live again, newest first: a crash half-way leaves the name pointing where it will."""
    newest_first = sorted(tombstones, key=lambda stored: -stored.version)
    return tuple(write_record(layout, transaction, stored.restored()) for stored in newest_first)


def purge(
    layout: StoreLayout, transaction: IndexTransaction, tombstones: Iterable[StoredVersion]
) -> tuple[StoredVersion, ...]:
    """End tombstones for good, and remove the files that no version needs any more."""
    now = time.time()
    purged = tuple(write_record(layout, transaction, stored.purged(now)) for stored in tombstones)
    for content_hash in {stored.content_hash for stored in purged}:
        if not transaction.is_content_in_use(content_hash):
            layout.blob(content_hash).unlink(missing_ok=True)
    return purged


def give_way(layout: StoreLayout, transaction: IndexTransaction, tenant: str, max_bytes: int) -> None:
    """Purge a tenant's oldest tombstones until the others have at most `max_bytes` together."""
    tombstones = transaction.tombstones(tenant)
    num_bytes = sum(stored.size_bytes for stored in tombstones)
    doomed = []
    for stored in tombstones:
        if num_bytes <= max_bytes:
            break
        doomed.append(stored)
        num_bytes -= stored.size_bytes
    purge(layout, transaction, doomed)


def last_deleted(tombstones: list[StoredVersion]) -> list[StoredVersion]:
    """Those of a name that the latest delete removed, together."""
    latest = max((stored.deleted_at or 0.0 for stored in tombstones), default=None)
    return [stored for stored in tombstones if stored.deleted_at == latest]
