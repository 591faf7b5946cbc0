"""Delete, restore and purge: what happens to the versions.

A deleted version is a tombstone: the catalog says so, its file stays, and it can be restored. A purged one is only a
number that is taken. Each step writes one version; files go afterwards, when no version needs them any more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from .catalog import CatalogTransaction
from .records import StoredVersion


def bury(
    transaction: CatalogTransaction, doomed: Iterable[StoredVersion], *, is_final: bool
) -> tuple[StoredVersion, ...]:
    """Delete living versions; with `is_final` for good.

    Oldest first: a crash half-way leaves the name pointing where it did.
    """
    now = time.time()
    buried = [stored.deleted(now) for stored in sorted(doomed, key=lambda stored: stored.version)]
    if is_final:
        return purge(transaction, buried)
    return tuple(transaction.write(stored) for stored in buried)


def revive(transaction: CatalogTransaction, tombstones: Iterable[StoredVersion]) -> tuple[StoredVersion, ...]:
    """Make tombstones live again, newest first: a crash half-way leaves the name pointing where it will."""
    newest_first = sorted(tombstones, key=lambda stored: -stored.version)
    return tuple(transaction.write(stored.restored()) for stored in newest_first)


def purge(transaction: CatalogTransaction, tombstones: Iterable[StoredVersion]) -> tuple[StoredVersion, ...]:
    """End tombstones for good."""
    now = time.time()
    return tuple(transaction.write(stored.purged(now)) for stored in tombstones)


def give_way(transaction: CatalogTransaction, tenant: str, max_bytes: int) -> tuple[StoredVersion, ...]:
    """Purge a tenant's oldest tombstones until the others have at most `max_bytes` together."""
    tombstones = transaction.tombstones(tenant)
    num_bytes = sum(stored.size_bytes for stored in tombstones)
    doomed = []
    for stored in tombstones:
        if num_bytes <= max_bytes:
            break
        doomed.append(stored)
        num_bytes -= stored.size_bytes
    return purge(transaction, doomed)


def last_deleted(tombstones: list[StoredVersion]) -> list[StoredVersion]:
    """Those of a name that the latest delete removed, together."""
    latest = max((stored.deleted_at or 0.0 for stored in tombstones), default=None)
    return [stored for stored in tombstones if stored.deleted_at == latest]
