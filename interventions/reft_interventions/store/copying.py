"""The versions and files of one store, brought to another, wherever the two keep theirs."""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import StoreError
from ..file_format import load
from .blobs import BlobStore
from .catalog import Catalog
from .records import StoredVersion


@dataclass(frozen=True)
class CopyReport:
    """How many versions the source has, deleted and purged ones too, and how many files had to be copied for them."""

    num_versions: int
    num_files: int


@dataclass(frozen=True)
class StoreParts:
    """Where a store keeps its versions and its files."""

    catalog: Catalog
    blobs: BlobStore

    def versions(self) -> list[StoredVersion]:
        """All of them, deleted and purged ones too.

        Raises:
            StoreError: one can't be read.
        """
        with self.catalog.transaction() as transaction:
            found, num_unreadable = self.catalog.rebuild(transaction)
        if num_unreadable:
            raise StoreError(f"{num_unreadable} versions can't be read; the log names them")
        return found


def copy_versions(source: StoreParts, target: StoreParts, new_temp_path: Callable[[], Path]) -> CopyReport:
    """Give the target every version that the source has, under its name, number and times; doing it again goes on.

    Each content is durable in the target before a version names it.

    Args:
        new_temp_path: of the target.

    Raises:
        StoreError: a version or a file can't be read or written, or the target has another version of that number.
    """
    found = source.versions()
    there = {_key(stored): stored for stored in target.versions()}
    for stored in found:
        other = there.get(_key(stored), stored)
        if _as_put(other) != _as_put(stored):
            raise StoreError(f"the target has another {stored.reference}: copy into an empty store")
    num_files = 0
    for content_hash, versions in _by_content(found).items():
        missing = [stored for stored in versions if there.get(_key(stored)) != stored]
        if not missing:
            continue
        try:
            num_files += _copy(source, target, content_hash, missing, new_temp_path(), there.keys())
        except OSError as error:
            raise StoreError(f"{missing[0].reference} can't be copied: {error.strerror}") from error
    return CopyReport(len(found), num_files)


def _copy(
    source: StoreParts,
    target: StoreParts,
    content_hash: str,
    versions: list[StoredVersion],
    staged: Path,
    there: Iterable[tuple[str, str, int]],
) -> bool:
    """Copy the versions of one content; says whether its file came along. A purged version has none."""
    has_file = any(stored.purged_at is None for stored in versions)
    try:
        if has_file:
            shutil.copyfile(source.blobs.path(content_hash), staged)
            if load(staged).content_hash != content_hash:
                raise StoreError(f"the file of {versions[0].reference} is damaged: upload it again, or purge it")
            target.blobs.prepare(staged, content_hash)
        with target.catalog.transaction() as transaction:
            placed = target.blobs.place(staged, content_hash) if has_file else ()
            for stored in versions:
                transaction.write(stored, is_new=_key(stored) not in there, after=placed)
    finally:
        staged.unlink(missing_ok=True)
    return has_file


def _by_content(found: Iterable[StoredVersion]) -> dict[str, list[StoredVersion]]:
    grouped: defaultdict[str, list[StoredVersion]] = defaultdict(list)
    for stored in sorted(found, key=_key):
        grouped[stored.content_hash].append(stored)
    return grouped


def _key(stored: StoredVersion) -> tuple[str, str, int]:
    return stored.tenant, stored.name, stored.version


def _as_put(stored: StoredVersion) -> StoredVersion:
    """What of a version never changes; its size may, where the same content was laid out anew."""
    return replace(stored, deleted_at=None, purged_at=None, size_bytes=0)
