"""A folder of intervention sets: content-addressed files, named versions, safe against crashes and other writers."""

from __future__ import annotations

import difflib
import logging
import shutil
import time
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
from .index import IndexDamagedError, IndexTransaction, StoreIndex
from .layout import StoreLayout
from .names import check_name, check_version
from .quota import StoreQuota
from .reconcile import RebuildReport, rebuild, sync_all, sync_name
from .records import StoredVersion, to_record

logger = logging.getLogger(__name__)

STALE_TEMPORARY_S = 3600.0
"""A temporary file that nothing has written to for this long belongs to nobody, not even to another live server."""


class InterventionStore:
    """The store under `root`; opening it reads neither files of sets nor, when nothing was lost, records.

    Every method may be called from any thread, and other processes may use the same folder at the same time.

    Raises:
        StoreError: the folder can't be made or used, or was written by a newer release.
    """

    def __init__(self, root: Path) -> None:
        self._tenant = ""
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
    ) -> StoredVersion:
        """Store a file as the next version of `name`; durable when it returns.

        The newest version is returned as it is when it has the same content. Numbers grow and are never used again.

        Args:
            path: a path from `new_temp_path`, which is moved in; any other file is copied and stays.
            intervention_set: what `path` holds, when the caller has just loaded it.
            quota: of this namespace; checked under the lock that orders writers.

        Raises:
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
                return self._put(transaction, staged, name, content, quota or StoreQuota())
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

    def delete(self, name: str, version: int | str | None = None) -> tuple[StoredVersion, ...]:
        """Delete one version, or all of a name (None); durable when it returns. Returns what was deleted.

        Raises:
            InvalidInterventionNameError: the name or the version breaks the rules.
            InterventionNotFoundError: there is nothing to delete.
            StoreError: the disk or the index failed.
        """
        target = None if version is None else self.resolve(name, version).version
        check_name(name)
        try:
            with self._index.transaction() as transaction:
                sync_name(self._layout, transaction, self._tenant, name)
                living = [stored for stored in transaction.records(self._tenant, name) if stored.deleted_at is None]
                doomed = [stored for stored in living if target in (None, stored.version)]
                # Oldest first: a crash half-way leaves the name pointing where it did.
                now = time.time()
                deleted = tuple(self._write_record(transaction, stored.deleted(now)) for stored in doomed)
                for content_hash in {stored.content_hash for stored in deleted}:
                    if not transaction.is_content_in_use(content_hash):
                        self._layout.blob(content_hash).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{name!r} can't be deleted: {error.strerror}") from error
        if not deleted:
            raise self._not_found(name, target)
        return deleted

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
        self, transaction: IndexTransaction, staged: Path, name: str, content: InterventionSet, quota: StoreQuota
    ) -> StoredVersion:
        last_version = sync_name(self._layout, transaction, self._tenant, name)
        newest = transaction.newest(self._tenant, name)
        if newest is None or newest.content_hash != content.content_hash:
            num_names, num_bytes = transaction.usage(self._tenant)
            quota.check(num_names + (newest is None), num_bytes + staged.stat().st_size)
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
            return self._write_record(transaction, stored, after=placed)
        except FileExistsError as error:
            # Only when another process lost its index while running: it no longer shares our lock.
            raise InterventionConflictError(f"another server just stored {stored.reference}; try again") from error

    def _write_record(
        self, transaction: IndexTransaction, stored: StoredVersion, after: tuple[Path, ...] = ()
    ) -> StoredVersion:
        """Write a record, visible only once the paths in `after`, which it needs, are on the disk."""
        record = self._layout.record(stored.tenant, stored.name, stored.version)
        durable.make_folder(record.parent.parent)
        record.parent.mkdir(exist_ok=True)
        temporary = durable.temporary_path(self._layout.temporary, ".record")
        temporary.write_bytes(to_record(stored))
        durable.sync(*after, temporary, record.parent.parent)
        if stored.deleted_at is None:
            durable.create_from(temporary, record)
        else:
            durable.move_file(temporary, record)
        transaction.put(stored)
        transaction.set_folder_mtime_ns(stored.tenant, stored.name, record.parent.stat().st_mtime_ns)
        return stored

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


def _is_intact(blob: Path, content_hash: str) -> bool:
    """Whether the file is there and holds that content: a new upload heals one that rotted."""
    if not blob.exists():
        return False
    try:
        return load(blob).content_hash == content_hash
    except InterventionError:
        logger.warning("stored_file_replaced content_hash=%s reason=damaged", content_hash)
        return False
