"""What a store can be asked without changing anything."""

from __future__ import annotations

import difflib
import logging
from pathlib import Path
from typing import BinaryIO

from ..errors import (
    InterventionConflictError,
    InterventionError,
    InterventionFileError,
    InterventionNotFoundError,
    StoreError,
)
from ..file_format import FileLimits, load
from ..intervention_set import InterventionSet
from .blobs import BlobStore
from .catalog import Catalog
from .names import check_name, check_version
from .records import StoredVersion

logger = logging.getLogger(__name__)


class StoreReader:
    """The names, versions and files of one tenant; any method may be called from any thread.

    Those that return a file or a set may have to fetch it; all others answer from memory or the index.
    """

    def __init__(self, catalog: Catalog, blobs: BlobStore, tenant: str = "") -> None:
        self._catalog = catalog
        self._blobs = blobs
        self._tenant = tenant

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
            self._catalog.newest(self._tenant, name)
            if wanted is None
            else self._catalog.version(self._tenant, name, wanted)
        )
        if found is None or found.deleted_at is not None:
            raise self._not_found(name, wanted, was_deleted=found is not None)
        return found

    def has_name(self, name: str) -> bool:
        """Whether a name has a living version; one that breaks the rules has none."""
        return self._catalog.newest(self._tenant, name) is not None

    def list(self) -> tuple[StoredVersion, ...]:
        """The newest living version of every name, by name."""
        return tuple(self._catalog.list_newest(self._tenant))

    def versions(self, name: str) -> tuple[StoredVersion, ...]:
        """The living versions of a name, oldest first.

        Raises:
            InvalidInterventionNameError: the name breaks the rules.
            InterventionNotFoundError: the name has none.
        """
        found = tuple(self._catalog.versions(self._tenant, check_name(name)))
        if not found:
            raise self._not_found(name, None)
        return found

    def counts(self) -> tuple[int, int]:
        """How many names and how many versions live, in all namespaces."""
        return self._catalog.counts()

    def has_content(self, name: str, content_hash: str) -> bool:
        """Whether a version of `name`, living or deleted, has or had this content."""
        return self._catalog.has_content(self._tenant, name, content_hash)

    def deleted(self, name: str | None = None) -> tuple[StoredVersion, ...]:
        """The deleted versions that can be restored, of one name or of all, oldest deletion first."""
        return tuple(self._catalog.tombstones(self._tenant, None if name is None else check_name(name)))

    def blob_path(self, stored: StoredVersion) -> Path:
        """Where the file of a version lies on this machine; it may be fetched for that."""
        return self._blobs.path(stored.content_hash)

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
            raise self._unreadable(stored, _reason(error)) from error

    def load(self, stored: StoredVersion, limits: FileLimits | None = None) -> InterventionSet:
        """Read the set of a version and verify its content hash.

        Raises:
            InterventionNotFoundError: it was deleted since it was resolved.
            StoreError: the file is lost or damaged.
        """
        try:
            return self._load(stored, limits)
        except (InterventionError, OSError) as error:
            if not self._blobs.drop_copy(stored.content_hash):
                raise self._unreadable(stored, _reason(error)) from error
        try:
            return self._load(stored, limits)
        except (InterventionError, OSError) as error:
            raise self._unreadable(stored, _reason(error)) from error

    def _load(self, stored: StoredVersion, limits: FileLimits | None) -> InterventionSet:
        loaded = load(self.blob_path(stored), limits)
        if loaded.content_hash != stored.content_hash:
            raise InterventionFileError("its content hash is not the recorded one")
        return loaded

    def _resolve_hash(self, name: str, prefix: str) -> StoredVersion:
        found = self._catalog.by_content(self._tenant, name, prefix)
        if not found:
            raise self._not_found(name, prefix)
        if len({stored.content_hash for stored in found}) > 1:
            raise InterventionConflictError(
                f"{prefix!r} fits several versions of {name!r}; give more digits of the hash", param="version"
            )
        return found[0]

    def _unreadable(self, stored: StoredVersion, what: str) -> InterventionNotFoundError | StoreError:
        current = self._catalog.version(stored.tenant, stored.name, stored.version)
        if current is None or current.deleted_at is not None:
            return self._not_found(stored.name, stored.version, was_deleted=True)
        logger.error("stored_file_unreadable reference=%s problem=%s", stored.reference, what)
        return StoreError(f"the stored file of {stored.reference} {what}; upload it again, or delete that version")

    def _not_found(
        self, name: str, version: int | str | None, *, was_deleted: bool = False
    ) -> InterventionNotFoundError:
        living = self._catalog.versions(self._tenant, name)
        if living:
            numbers = ", ".join(str(stored.version) for stored in living[-5:])
            verb = "was deleted" if was_deleted else "does not exist"
            return InterventionNotFoundError(
                f"version {version} of intervention {name!r} {verb}; it has {numbers}", param="version"
            )
        close = difflib.get_close_matches(name, self._catalog.similar_names(self._tenant, name), n=3)
        hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        return InterventionNotFoundError(f"there is no intervention {name!r}{hint}", param="name")


def _reason(error: InterventionError | OSError) -> str:
    return f"can't be read: {error.message if isinstance(error, InterventionError) else error.strerror}"
