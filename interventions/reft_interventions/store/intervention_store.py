"""A folder of intervention sets: content-addressed files, named versions, safe against crashes and other writers."""

from __future__ import annotations

import difflib
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from ..errors import (
    InterventionConflictError,
    InterventionError,
    InterventionNotFoundError,
    StoreError,
)
from ..file_format import FileLimits, load
from ..intervention_set import InterventionSet
from . import durable
from .condition import PutCondition
from .index import IndexDamagedError, IndexTransaction, StoreIndex
from .layout import StoreLayout
from .names import check_name, check_version
from .quota import StoreQuota
from .reconcile import RebuildReport, rebuild, sync_all, sync_name
from .records import StoredVersion
from .tombstones import bury, give_way, last_deleted, purge, revive, write_record

logger = logging.getLogger(__name__)

STALE_TEMPORARY_S = 3600.0
"""A temporary file that nothing has written to for this long belongs to nobody, not even to another live server."""


class InterventionStore:
    """The store under `root`; opening it reads neither files of sets nor, when nothing was lost, records.

    Every method may be called from any thread, and other processes may use the same folder at the same time.

    Args:
        retention_s: how long a deleted version can be restored, unless its space is needed; 0 = never.

    Raises:
        StoreError: the folder can't be made or used, or was written by a newer release.
    """

    def __init__(self, root: Path, retention_s: float = 0.0) -> None:
        self._tenant = ""
        self.retention_s = retention_s
        self._layout = StoreLayout(Path(root))
        try:
            self._layout.make()
            self._index = self._open_index()
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
        """The same store as another tenant sees it: the same folder and index, and none of the other names.

        Raises:
            InvalidInterventionNameError: the tenant's name breaks the rules.
        """
        view = copy(self)
        view._tenant = check_name(tenant) if tenant else ""
        return view

    def close(self) -> None:
        """Close the index, for every namespace; calling twice is fine."""
        self._index.close()

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
            with self._index.transaction() as transaction:
                return self._put(transaction, staged, name, content, quota or StoreQuota(), condition or PutCondition())
        except OSError as error:
            raise StoreError(f"{name!r} can't be stored: {error.strerror}") from error
        finally:
            if staged != path:
                staged.unlink(missing_ok=True)

    def resolve(self, name: str, version: int | str | None = None) -> StoredVersion:
        """Find a living version.

        Args:
            version: None = the newest; a number; or `sha256:` and at least 12 hex digits of the content hash.

        Raises:
            InvalidInterventionNameError: the name or the version breaks the rules.
            InterventionNotFoundError: there is none; the message suggests close names or the existing versions.
            InterventionConflictError: a hash prefix fits different contents.
        """
        check_name(name)
        wanted = check_version(version)
        if isinstance(wanted, str):
            return self._resolve_hash(name, wanted)
        found = (
            self._index.newest(self._tenant, name)
            if wanted is None
            else self._index.version(self._tenant, name, wanted)
        )
        if found is None or found.deleted_at is not None:
            raise self._not_found(name, wanted, was_deleted=found is not None)
        return found

    def has_name(self, name: str) -> bool:
        """Whether a name has a living version; one that breaks the rules has none."""
        return self._index.newest(self._tenant, name) is not None

    def list(self) -> tuple[StoredVersion, ...]:
        """The newest living version of every name, by name."""
        return tuple(self._index.list_newest(self._tenant))

    def versions(self, name: str) -> tuple[StoredVersion, ...]:
        """The living versions of a name, oldest first.

        Raises:
            InvalidInterventionNameError: the name breaks the rules.
            InterventionNotFoundError: the name has none.
        """
        found = tuple(self._index.versions(self._tenant, check_name(name)))
        if not found:
            raise self._not_found(name, None)
        return found

    def counts(self) -> tuple[int, int]:
        """How many names and how many versions live, in all namespaces."""
        return self._index.counts()

    def has_content(self, name: str, content_hash: str) -> bool:
        """Whether a version of `name`, living or deleted, has or had this content."""
        return self._index.has_content(self._tenant, name, content_hash)

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
            deleted = bury(self._layout, transaction, living, is_final=is_final)
        if not deleted:
            raise self._not_found(name, target)
        return deleted

    def deleted(self, name: str | None = None) -> tuple[StoredVersion, ...]:
        """The deleted versions that can be restored, of one name or of all, oldest deletion first."""
        return tuple(self._index.tombstones(self._tenant, None if name is None else check_name(name)))

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
                self._check_intact(stored)
            num_names, num_bytes = transaction.usage(self._tenant)
            num_bytes += sum(stored.size_bytes for stored in chosen)
            (quota or StoreQuota()).check(num_names + (not living), num_bytes)
            return revive(self._layout, transaction, chosen)

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
            return purge(self._layout, transaction, doomed)

    def purge_expired(self) -> tuple[StoredVersion, ...]:
        """End, in all namespaces, what was deleted longer ago than the retention time. Returns what was purged.

        Raises:
            StoreError: the disk or the index failed.
        """
        oldest = time.time() - self.retention_s
        try:
            with self._index.transaction() as transaction:
                return purge(
                    self._layout,
                    transaction,
                    [stored for stored in transaction.tombstones() if (stored.deleted_at or 0.0) <= oldest],
                )
        except OSError as error:
            raise StoreError(f"deleted versions can't be purged: {error.strerror}") from error

    def blob_path(self, stored: StoredVersion) -> Path:
        """Where the file of a version lies."""
        return self._layout.blob(stored.content_hash)

    def open(self, stored: StoredVersion) -> BinaryIO:
        """Open the file of a version; it stays readable when the version is deleted meanwhile.

        Its length is that of the open file: the same content, uploaded again after damage, may be laid out otherwise.

        Raises:
            InterventionNotFoundError: it was deleted since it was resolved.
            StoreError: the file is lost or can't be read.
        """
        try:
            return self.blob_path(stored).open("rb")
        except OSError as error:
            raise self._unreadable(stored, f"can't be read: {error.strerror}") from error

    def load(self, stored: StoredVersion, limits: FileLimits | None = None) -> InterventionSet:
        """Read the set of a version and verify its content hash.

        Raises:
            InterventionNotFoundError: it was deleted since it was resolved.
            StoreError: the file is lost or damaged.
        """
        try:
            loaded = load(self.blob_path(stored), limits)
        except InterventionError as error:
            raise self._unreadable(stored, f"can't be read: {error.message}") from error
        if loaded.content_hash != stored.content_hash:
            raise self._unreadable(stored, "is damaged: its content hash is not the recorded one")
        return loaded

    def rebuild(self) -> RebuildReport:
        """Read every record again into the index, and remove files that no version uses.

        Raises:
            StoreError: the disk or the index failed.
        """
        try:
            with self._index.transaction() as transaction:
                return rebuild(self._layout, transaction)
        except OSError as error:
            raise StoreError(f"the store's index can't be rebuilt: {error.strerror}") from error

    def _open_index(self) -> StoreIndex:
        path = self._layout.index
        # One opener at a time: two that find the same damage must not set aside each other's fresh index.
        with durable.exclusive_lock(self._layout.lock):
            try:
                index = StoreIndex(path)
            except IndexDamagedError as error:
                logger.warning("store_index_damaged rebuild=true reason=%s", error)
                self._layout.set_index_aside()
                index = StoreIndex(path)
        try:
            sync_all(self._layout, index)
        except BaseException:
            index.close()
            raise
        return index

    def _put(
        self,
        transaction: IndexTransaction,
        staged: Path,
        name: str,
        content: InterventionSet,
        quota: StoreQuota,
        condition: PutCondition,
    ) -> StoredVersion:
        last_version = sync_name(self._layout, transaction, self._tenant, name)
        newest = transaction.newest(self._tenant, name)
        condition.check(name, newest)
        if newest is None or newest.content_hash != content.content_hash:
            num_names, num_bytes = transaction.usage(self._tenant)
            num_bytes += staged.stat().st_size
            quota.check(num_names + (newest is None), num_bytes)
            if quota.max_bytes is not None:
                give_way(self._layout, transaction, self._tenant, quota.max_bytes - num_bytes)
        blob = self._layout.blob(content.content_hash)
        if _is_intact(blob, content.content_hash):
            staged.unlink()
        else:
            blob.parent.mkdir(exist_ok=True)
            staged.replace(blob)
        placed = (blob, blob.parent, blob.parent.parent)
        if newest is not None and newest.content_hash == content.content_hash:
            durable.sync(*placed)
            return newest
        manifest_json = content.manifest.canonical_json()
        stored = StoredVersion(
            name,
            last_version + 1,
            content.content_hash,
            blob.stat().st_size,
            time.time(),
            manifest_json,
            tenant=self._tenant,
        )
        try:
            return write_record(self._layout, transaction, stored, is_new=True, after=placed)
        except FileExistsError as error:
            # Only when another process lost its index while running: it no longer shares our lock.
            raise InterventionConflictError(f"another server just stored {stored.reference}; try again") from error

    @contextmanager
    def _writing(self, name: str, what: str) -> Iterator[IndexTransaction]:
        """A transaction in which the index agrees with the records of `name`."""
        check_name(name)
        try:
            with self._index.transaction() as transaction:
                sync_name(self._layout, transaction, self._tenant, name)
                yield transaction
        except OSError as error:
            raise StoreError(f"{name!r} can't be {what}: {error.strerror}") from error

    def _check_intact(self, stored: StoredVersion) -> None:
        if not _is_intact(self._layout.blob(stored.content_hash), stored.content_hash):
            raise StoreError(f"the file of {stored.reference} is lost or damaged; upload it again")

    def _resolve_hash(self, name: str, prefix: str) -> StoredVersion:
        found = self._index.by_content(self._tenant, name, prefix)
        if not found:
            raise self._not_found(name, prefix)
        if len({stored.content_hash for stored in found}) > 1:
            raise InterventionConflictError(
                f"{prefix!r} fits several versions of {name!r}; give more digits of the hash", param="version"
            )
        return found[0]

    def _unreadable(self, stored: StoredVersion, what: str) -> InterventionNotFoundError | StoreError:
        current = self._index.version(stored.tenant, stored.name, stored.version)
        if current is None or current.deleted_at is not None:
            return self._not_found(stored.name, stored.version, was_deleted=True)
        logger.error("stored_file_unreadable reference=%s problem=%s", stored.reference, what)
        return StoreError(f"the stored file of {stored.reference} {what}; upload it again, or delete that version")

    def _not_found(
        self, name: str, version: int | str | None, *, was_deleted: bool = False
    ) -> InterventionNotFoundError:
        living = self._index.versions(self._tenant, name)
        if living:
            numbers = ", ".join(str(stored.version) for stored in living[-5:])
            verb = "was deleted" if was_deleted else "does not exist"
            return InterventionNotFoundError(
                f"version {version} of intervention {name!r} {verb}; it has {numbers}", param="version"
            )
        close = difflib.get_close_matches(name, self._index.similar_names(self._tenant, name), n=3)
        hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        return InterventionNotFoundError(f"there is no intervention {name!r}{hint}", param="name")


def _is_version(stored: StoredVersion, wanted: int | str) -> bool:
    return stored.version == wanted if isinstance(wanted, int) else stored.content_hash.startswith(wanted)


def _is_intact(blob: Path, content_hash: str) -> bool:
    """Whether the file is there and holds that content: a new upload heals one that rotted."""
    if not blob.exists():
        return False
    try:
        return load(blob).content_hash == content_hash
    except InterventionError:
        logger.warning("stored_file_replaced content_hash=%s reason=damaged", content_hash)
        return False
