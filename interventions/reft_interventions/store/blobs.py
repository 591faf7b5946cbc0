"""Where the files of sets lie, by the hash of their content."""

from __future__ import annotations

import logging
from collections.abc import Set
from pathlib import Path
from typing import Protocol

from ..errors import InterventionError
from ..file_format import load
from .layout import StoreLayout

logger = logging.getLogger(__name__)


class BlobStore(Protocol):
    """Files that never change, by content hash. All methods but `prepare` and `path` run under the catalog's lock.

    Any method may raise `OSError`, or `StoreError` where a service failed.
    """

    def prepare(self, staged: Path, content_hash: str) -> None:
        """Do what takes long with a file that is about to be placed, before the lock is taken."""

    def place(self, staged: Path, content_hash: str) -> tuple[Path, ...]:
        """Take over a file, which is gone afterwards; one that was damaged is healed.

        Returns the paths that must be on the disk before a version may name the content.
        """

    def path(self, content_hash: str) -> Path:
        """A file with this content on this machine.

        Raises:
            FileNotFoundError: there is none anywhere.
        """

    def drop_copy(self, content_hash: str) -> bool:
        """Forget this machine's copy, which turned out damaged; False where it is no copy."""

    def is_intact(self, content_hash: str) -> bool:
        """Whether the file is there and holds that content."""

    def remove(self, content_hash: str) -> None:
        """Remove a file; one that is gone is no error."""

    def remove_unused(self, used: Set[str]) -> int:
        """Remove every file but those of these content hashes; says how many."""


class DiskBlobs:
    """In the store's folder."""

    def __init__(self, layout: StoreLayout) -> None:
        self._layout = layout

    def prepare(self, staged: Path, content_hash: str) -> None:
        """Nothing takes long here."""

    def place(self, staged: Path, content_hash: str) -> tuple[Path, ...]:
        """Rename it to its place, unless an intact one is there."""
        blob = self._layout.blob(content_hash)
        if self.is_intact(content_hash):
            staged.unlink()
        else:
            blob.parent.mkdir(exist_ok=True)
            staged.replace(blob)
        return blob, blob.parent, blob.parent.parent

    def path(self, content_hash: str) -> Path:
        """Where it lies, or would."""
        return self._layout.blob(content_hash)

    def drop_copy(self, content_hash: str) -> bool:  # noqa: ARG002 - the file itself is here
        """There are no copies."""
        return False

    def is_intact(self, content_hash: str) -> bool:
        """Whether the file is there and holds that content."""
        blob = self._layout.blob(content_hash)
        if not blob.exists():
            return False
        try:
            return load(blob).content_hash == content_hash
        except InterventionError:
            logger.warning("stored_file_damaged content_hash=%s", content_hash)
            return False

    def remove(self, content_hash: str) -> None:
        """Remove a file; one that is gone is no error."""
        self._layout.blob(content_hash).unlink(missing_ok=True)

    def remove_unused(self, used: Set[str]) -> int:
        """Remove every file but those of these content hashes; says how many."""
        kept = {self._layout.blob(content_hash) for content_hash in used}
        doomed = [path for path in self._layout.all_blobs() if path not in kept]
        for path in doomed:
            path.unlink(missing_ok=True)
        return len(doomed)
