"""Where everything lies in a store's folder; a picture is in docs/store.md."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import durable

_INDEX_SUFFIXES = ("", "-wal", "-shm")


@dataclass(frozen=True)
class StoreLayout:
    """The paths under a store's root."""

    root: Path

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def records(self) -> Path:
        return self.root / "refs"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs" / "sha256"

    @property
    def index(self) -> Path:
        return self.root / "index.sqlite3"

    @property
    def lock(self) -> Path:
        return self.root / "open.lock"

    def make(self) -> None:
        """Create the folders that are missing."""
        for folder in (self.temporary, self.records, self.blobs):
            durable.make_folder(folder)

    def blob(self, content_hash: str) -> Path:
        """The file of a content hash, `sha256:<64 hex>`."""
        digits = content_hash.removeprefix("sha256:")
        return self.blobs / digits[:2] / f"{digits}.safetensors"

    def namespace(self, tenant: str) -> Path:
        """The folder of a tenant's records. No name begins with @, so none can be taken for a tenant."""
        return self.records / f"@{tenant}" if tenant else self.records

    def tenants(self) -> list[str]:
        """Every tenant that may have records, the unnamed one first."""
        return ["", *sorted(path.name[1:] for path in self.records.glob("@*") if path.is_dir())]

    def record(self, tenant: str, name: str, version: int) -> Path:
        """The JSON record of a version."""
        return self.namespace(tenant) / name / f"{version}.json"

    def record_numbers(self, tenant: str, name: str) -> list[int]:
        """The versions that have a record, readable or not, in order."""
        folder = self.namespace(tenant) / name
        if not folder.is_dir():
            return []
        return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isascii() and path.stem.isdigit())

    def all_blobs(self) -> Iterator[Path]:
        return self.blobs.glob("*/*.safetensors")

    def set_index_aside(self) -> None:
        """Rename a damaged index out of the way, for whoever wants to look at it."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for suffix in _INDEX_SUFFIXES:
            path = self.index.with_name(self.index.name + suffix)
            if path.exists():
                path.replace(path.with_name(f"damaged-{stamp}-{path.name}"))
