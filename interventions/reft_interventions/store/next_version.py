"""Put: what happens under the writers' lock when a file becomes the next version of a name."""

from __future__ import annotations

import time
from pathlib import Path

from ..errors import InterventionConflictError
from ..intervention_set import InterventionSet
from . import durable
from .blobs import BlobStore
from .catalog import CatalogTransaction
from .quota import StoreQuota
from .records import StoredVersion
from .tombstones import give_way


def make_room(
    transaction: CatalogTransaction,
    tenant: str,
    newest: StoredVersion | None,
    content_hash: str,
    size_bytes: int,
    quota: StoreQuota,
) -> tuple[StoredVersion, ...]:
    """Check a namespace's quota, and let its tombstones give way; returns those.

    Args:
        newest: version of the name that is put; one of the same content takes no more room.

    Raises:
        InterventionQuotaError: it would be exceeded.
    """
    if newest is not None and newest.content_hash == content_hash:
        return ()
    num_names, num_bytes = transaction.usage(tenant)
    num_bytes += size_bytes
    quota.check(num_names + (newest is None), num_bytes)
    if quota.max_bytes is None:
        return ()
    return give_way(transaction, tenant, quota.max_bytes - num_bytes)


def write_next(
    transaction: CatalogTransaction,
    blobs: BlobStore,
    tenant: str,
    staged: Path,
    name: str,
    content: InterventionSet,
    newest: StoredVersion | None,
) -> StoredVersion:
    """Place the file, then write its version; durable when it returns. `newest` itself, where it has this content.

    Raises:
        InterventionConflictError: the number was taken meanwhile.
        OSError: the disk failed.
    """
    placed = blobs.place(staged, content.content_hash)
    if newest is not None and newest.content_hash == content.content_hash:
        durable.sync(*placed)
        return newest
    stored = StoredVersion(
        name,
        transaction.last_version(tenant, name) + 1,
        content.content_hash,
        blobs.path(content.content_hash).stat().st_size,
        time.time(),
        content.manifest.canonical_json(),
        tenant=tenant,
    )
    try:
        return transaction.write(stored, is_new=True, after=placed)
    except FileExistsError as error:
        # Only when another process lost its index while running: it no longer shares our lock.
        raise InterventionConflictError(f"another server just stored {stored.reference}; try again") from error
