"""Named versions of intervention sets and their files, safe against crashes and other writers."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ..errors import InterventionError, InterventionNotFoundError, StoreError
from ..file_format import load
from ..intervention_set import InterventionSet
from . import durable
from .blobs import BlobStore, DiskBlobs
from .catalog import Catalog, CatalogTransaction
from .condition import PutCondition
from .copying import CopyReport, StoreParts, copy_versions
from .layout import StoreLayout
from .names import check_name, check_version
from .next_version import make_room, write_next
from .quota import StoreQuota
from .reader import StoreReader
from .record_catalog import RecordCatalog
from .records import StoredVersion
from .tombstones import bury, last_deleted, purge, revive

STALE_TEMPORARY_S = 3600.0
"""A temporary file that nothing has written to for this long belongs to nobody, not even to another live server."""


@dataclass(frozen=True)
class RebuildReport:
    """What `rebuild` found: records read and unreadable, and files removed because no version needs them."""

    num_records: int
    num_unreadable_records: int
    num_removed_files: int


class InterventionStore(StoreReader):
    """The store under `root`; opening it reads neither files of sets nor, when nothing was lost, records.

    Every method may be called from any thread, and other processes may use the same folder at the same time.

    Args:
        retention_s: how long a deleted version can be restored, unless its space is needed; 0 = never.
        catalog: of the versions, closed with the store; None = records in the folder.
        blobs: where the files lie; None = in the folder.

    Raises:
        StoreError: the folder can't be made or used, or was written by a newer release.
    """

    def __init__(
        self,
        root: Path,
        retention_s: float = 0.0,
        *,
        catalog: Catalog | None = None,
        blobs: BlobStore | None = None,
    ) -> None:
        self.retention_s = retention_s
        self._layout = StoreLayout(Path(root))
        try:
            self._layout.make()
            super().__init__(catalog or RecordCatalog.open(self._layout), blobs or DiskBlobs(self._layout))
            durable.remove_older_than(self._layout.temporary, STALE_TEMPORARY_S)
        except OSError as error:
            raise StoreError(f"the intervention store can't be opened: {error.strerror}") from error

    def __enter__(self) -> InterventionStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def namespace(self, tenant: str) -> InterventionStore:
        """The same store as another tenant sees it: the same files and catalog, and none of the other names.

        Raises:
            InvalidInterventionNameError: the tenant's name breaks the rules.
        """
        view = copy(self)
        view._tenant = check_name(tenant) if tenant else ""
        return view

    def close(self) -> None:
        """Close the catalog, for every namespace; calling twice is fine."""
        self._catalog.close()

    def refresh(self) -> bool:
        """Look for what other servers have written; says whether there was anything.

        Raises:
            StoreError: the catalog can't be read.
        """
        return self._catalog.refresh()

    def new_temp_path(self) -> Path:
        """A path that does not exist yet, on the store's file system: write an upload there, then `put` it."""
        return durable.temporary_path(self._layout.temporary, ".upload")

    def put(
        self,
        path: Path,
        name: str,
        intervention_set: InterventionSet | None = None,
        quota: StoreQuota | None = None,
        condition: PutCondition | None = None,
    ) -> StoredVersion:
        """Store a file as the next version of `name`; durable when it returns.

        The newest version is returned as it is when it has the same content. Numbers grow and are never used again.

        Args:
            path: a path from `new_temp_path`, which is moved in; any other file is copied and stays.
            intervention_set: what `path` holds, when the caller has just loaded it.
            quota: of this namespace; checked under the lock that orders writers.
            condition: what the name must hold now; checked under that lock too.

        Raises:
            InterventionPreconditionError: `condition` does not hold.
            InterventionQuotaError: it would be exceeded.
            InvalidInterventionNameError: `name` breaks the rules.
            InterventionError: the file can't be read; see `file_format.load`.
            StoreError: the disk or the index failed.
        """
        check_name(name)
        staged = path
        if path.parent != self._layout.temporary:
            staged = self.new_temp_path()
        try:
            if staged != path:
                shutil.copyfile(path, staged)
            content = intervention_set or load(staged)
            self._blobs.prepare(staged, content.content_hash)
            try:
                with self._writing(name, "stored") as transaction:
                    newest = transaction.newest(self._tenant, name)
                    (condition or PutCondition()).check(name, newest)
                    size_bytes, limit = staged.stat().st_size, quota or StoreQuota()
                    gone = make_room(transaction, self._tenant, newest, content.content_hash, size_bytes, limit)
                    stored = write_next(transaction, self._blobs, self._tenant, staged, name, content, newest)
            except InterventionError:
                self._remove_files({content.content_hash})  # nobody asked for what was prepared
                raise
            self._remove_files({old.content_hash for old in gone})
            return stored
        except OSError as error:
            raise StoreError(f"{name!r} can't be stored: {error.strerror}") from error
        finally:
            if staged != path:
                staged.unlink(missing_ok=True)

    def delete(
        self, name: str, version: int | str | None = None, *, is_final: bool = False
    ) -> tuple[StoredVersion, ...]:
        """Delete one version, or all of a name (None); durable when it returns. Returns what was deleted.

        Args:
            is_final: they can't be restored, and their files go now.

        Raises:
            InvalidInterventionNameError: the name or the version breaks the rules.
            InterventionNotFoundError: there is nothing to delete.
            StoreError: the disk or the index failed.
        """
        target = None if version is None else self.resolve(name, version).version
        is_final = is_final or self.retention_s == 0
        with self._writing(name, "deleted") as transaction:
            records = transaction.records(self._tenant, name)
            living = [stored for stored in records if stored.deleted_at is None and target in (None, stored.version)]
            deleted = bury(transaction, living, is_final=is_final)
        if not deleted:
            raise self._not_found(name, target)
        if is_final:
            self._remove_files({stored.content_hash for stored in deleted})
        return deleted

    def restore(
        self, name: str, version: int | str | None = None, quota: StoreQuota | None = None
    ) -> tuple[StoredVersion, ...]:
        """Undo the latest delete of a name, or restore one version of it; durable when it returns.

        A version that lives is returned as it is.

        Args:
            version: None = what the latest delete removed; a number; or a content hash, as for `resolve`.

        Raises:
            InvalidInterventionNameError: the name or the version breaks the rules.
            InterventionNotFoundError: there is nothing to restore, or it was purged.
            InterventionQuotaError: the namespace has no room for it any more.
            StoreError: the file is lost or damaged, or the disk or the index failed.
        """
        wanted = check_version(version)
        with self._writing(name, "restored") as transaction:
            records = transaction.records(self._tenant, name)
            living = [stored for stored in records if stored.deleted_at is None]
            alive = [stored for stored in living if wanted is not None and _is_version(stored, wanted)]
            if alive:
                return (alive[-1],)
            dead = [stored for stored in records if stored.can_be_restored]
            chosen = last_deleted(dead) if wanted is None else [one for one in dead if _is_version(one, wanted)][-1:]
            if not chosen:
                what = "nothing" if wanted is None else f"no version {wanted}"
                raise InterventionNotFoundError(
                    f"{what} of {name!r} can be restored: deleted versions are kept for {self.retention_s:g} seconds",
                    param="name" if wanted is None else "version",
                )
            for stored in chosen:
                if not self._blobs.is_intact(stored.content_hash):
                    raise StoreError(f"the file of {stored.reference} is lost or damaged; upload it again")
            num_names, num_bytes = transaction.usage(self._tenant)
            num_bytes += sum(stored.size_bytes for stored in chosen)
            (quota or StoreQuota()).check(num_names + (not living), num_bytes)
            return revive(transaction, chosen)

    def purge(self, name: str, version: int | str | None = None) -> tuple[StoredVersion, ...]:
        """End deleted versions of a name for good: one, or all (None). Returns what was purged, which may be nothing.

        Raises:
            InvalidInterventionNameError: the name or the version breaks the rules.
            StoreError: the disk or the index failed.
        """
        wanted = check_version(version)
        with self._writing(name, "purged") as transaction:
            dead = [stored for stored in transaction.records(self._tenant, name) if stored.can_be_restored]
            doomed = [stored for stored in dead if wanted is None or _is_version(stored, wanted)]
            purged = purge(transaction, doomed)
        self._remove_files({stored.content_hash for stored in purged})
        return purged

    def purge_expired(self) -> tuple[StoredVersion, ...]:
        """End, in all namespaces, what was deleted longer ago than the retention time. Returns what was purged.

        Raises:
            StoreError: the disk or the index failed.
        """
        oldest = time.time() - self.retention_s
        with self._writing(None, "purged") as transaction:
            tombstones = transaction.tombstones()
            purged = purge(transaction, [stored for stored in tombstones if (stored.deleted_at or 0.0) <= oldest])
        self._remove_files({stored.content_hash for stored in purged})
        return purged

    def copy_to(self, target: InterventionStore) -> CopyReport:
        """Give another store every version of every namespace of this one; see `copy_versions`.

        Raises:
            StoreError: either can't be used, or the target has another version of some number.
        """
        here, there = (StoreParts(store._catalog, store._blobs) for store in (self, target))
        return copy_versions(here, there, target.new_temp_path)

    def rebuild(self) -> RebuildReport:
        """Read everything again into the catalog's index, and remove files that no version uses.

        No file is removed while a record can't be read: it may be the one that uses it.

        Raises:
            StoreError: the disk or the catalog failed.
        """
        try:
            with self._catalog.transaction() as transaction:
                found, num_unreadable = self._catalog.rebuild(transaction)
                used = {stored.content_hash for stored in found if stored.purged_at is None}
                num_removed = 0 if num_unreadable else self._blobs.remove_unused(used)
                return RebuildReport(len(found), num_unreadable, num_removed)
        except OSError as error:
            raise StoreError(f"the store's index can't be rebuilt: {error.strerror}") from error

    @contextmanager
    def _writing(self, name: str | None, what: str) -> Iterator[CatalogTransaction]:
        """A transaction about one name, or all."""
        try:
            with self._catalog.transaction(self._tenant, None if name is None else check_name(name)) as transaction:
                yield transaction
        except OSError as error:
            subject = "deleted versions" if name is None else repr(name)
            raise StoreError(f"{subject} can't be {what}: {error.strerror}") from error

    def _remove_files(self, content_hashes: Set[str]) -> None:
        """Remove the files that no version needs any more.

        Only once it is durable that the purged ones do not, and under the lock: no upload counts on them meanwhile.
        """
        if content_hashes:
            with self._writing(None, "removed") as transaction:
                for content_hash in content_hashes:
                    if not transaction.is_content_in_use(content_hash):
                        self._blobs.remove(content_hash)


def _is_version(stored: StoredVersion, wanted: int | str) -> bool:
    return stored.version == wanted if isinstance(wanted, int) else stored.content_hash.startswith(wanted)
