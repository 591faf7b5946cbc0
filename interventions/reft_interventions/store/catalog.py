"""What a store asks of its catalog of versions, whatever holds it: `RecordCatalog`, or a server's database."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from .records import StoredVersion


class CatalogTransaction(Protocol):
    """What a writer sees and does while it holds the catalog's lock."""

    def newest(self, tenant: str, name: str) -> StoredVersion | None:
        """The newest living version of a name."""

    def last_version(self, tenant: str, name: str) -> int:
        """The highest number that a name ever used, or 0."""

    def records(self, tenant: str, name: str) -> list[StoredVersion]:
        """All versions of a name, deleted and purged ones too, oldest first."""

    def tombstones(self, tenant: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one tenant or of all, oldest deletion first."""

    def usage(self, tenant: str) -> tuple[int, int]:
        """How many names of a tenant have a living version, and the bytes of all living versions together."""

    def is_content_in_use(self, content_hash: str) -> bool:
        """Whether any version that lives or can be restored has this content."""

    def write(self, stored: StoredVersion, *, is_new: bool = False, after: tuple[Path, ...] = ()) -> StoredVersion:
        """Add a version, or replace what is known of it.

        Args:
            is_new: its number must not be taken.
            after: paths that must be on the disk before the version can be seen.

        Raises:
            FileExistsError: `is_new`, and it is taken.
        """


class Catalog(Protocol):
    """The versions of all tenants. Reads never wait for a writer or a network, and see what this process has written.

    Every method may raise `StoreError`: what holds the catalog failed.
    """

    def transaction(self, tenant: str = "", name: str | None = None) -> AbstractContextManager[CatalogTransaction]:
        """At most one writer at a time, over all threads, processes and machines; committed at the end.

        Args:
            tenant, name: the name that will be read or written; None for all.
        """

    def newest(self, tenant: str, name: str) -> StoredVersion | None:
        """The newest living version of a name."""

    def version(self, tenant: str, name: str, version: int) -> StoredVersion | None:
        """One version, living or deleted."""

    def by_content(self, tenant: str, name: str, hash_prefix: str) -> list[StoredVersion]:
        """The living versions of a name whose content hash begins so, newest first."""

    def versions(self, tenant: str, name: str) -> list[StoredVersion]:
        """The living versions of a name, oldest first."""

    def tombstones(self, tenant: str, name: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one name or of all, oldest deletion first."""

    def list_newest(self, tenant: str) -> list[StoredVersion]:
        """The newest living version of every name, by name."""

    def counts(self) -> tuple[int, int]:
        """How many names, of all tenants, have a living version, and how many living versions there are."""

    def similar_names(self, tenant: str, name: str) -> list[str]:
        """Living names of about the same length, for a suggestion; a bounded number."""

    def has_content(self, tenant: str, name: str, content_hash: str) -> bool:
        """Whether a version of the name, living or deleted, has or had this content."""

    def refresh(self) -> bool:
        """Look for what others have written, where reads do not see it anyway; says whether there was anything."""

    def rebuild(self, transaction: CatalogTransaction) -> tuple[list[StoredVersion], int]:
        """Read everything again; returns every version, and how many could not be read."""

    def close(self) -> None:
        """Let go of what is open; calling twice is fine."""
