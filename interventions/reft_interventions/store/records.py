"""One stored version, and the small JSON record that is its durable truth."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from ..errors import StoreError
from ..manifest import Manifest

_CONTENT_HASH = re.compile(r"sha256:[0-9a-f]{64}")

RECORD_FORMAT = 1
"""Of the JSON records; a reader refuses another."""


@dataclass(frozen=True)
class StoredVersion:
    """One version under a name. It never changes, but for `deleted_at` and `purged_at`.

    Args:
        content_hash: `sha256:<64 hex>` of the canonical manifest and tensors, computed here, never by a client.
        size_bytes: of the file.
        created_at: Unix seconds.
        deleted_at: Unix seconds; None while it lives. The number of a deleted version is never used again.
        purged_at: Unix seconds; None while it lives or can be restored. Its file goes, its record stays.
        tenant: whose namespace it is in; empty where there is only one.
    """

    name: str
    version: int
    content_hash: str
    size_bytes: int
    created_at: float
    manifest_json: str
    deleted_at: float | None = None
    tenant: str = ""
    purged_at: float | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest, parsed when first asked for: a list of a thousand sets needs none of them."""
        return Manifest.model_validate_json(self.manifest_json)

    @property
    def reference(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def can_be_restored(self) -> bool:
        """Deleted, and not purged yet."""
        return self.deleted_at is not None and self.purged_at is None

    def deleted(self, deleted_at: float) -> StoredVersion:
        """The tombstone of this version."""
        return replace(self, deleted_at=deleted_at)

    def restored(self) -> StoredVersion:
        """This version, living again."""
        return replace(self, deleted_at=None)

    def purged(self, purged_at: float) -> StoredVersion:
        """What remains of a tombstone for ever: the number is taken."""
        return replace(self, purged_at=purged_at)


def to_record(stored: StoredVersion) -> bytes:
    """The JSON record of a version, as it is written to `refs/<name>/<version>.json` or below `refs/@<tenant>`."""
    fields = {"format": RECORD_FORMAT, **asdict(stored)}
    return (json.dumps(fields, indent=1, ensure_ascii=True) + "\n").encode()


def from_record(data: bytes, *, name: str, version: int, tenant: str = "") -> StoredVersion:
    """Read a record back.

    Raises:
        StoreError: not a record, of another format, or not the one of `tenant`, `name` and `version`.
    """
    try:
        fields = json.loads(data)
    except ValueError as error:
        raise StoreError(f"the record of {name}@{version} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("format") != RECORD_FORMAT:
        raise StoreError(f"the record of {name}@{version} has a format that this version can't read")
    fields = {"tenant": "", "purged_at": None, **fields}
    if (fields["tenant"], fields.get("name"), fields.get("version")) != (tenant, name, version):
        raise StoreError(f"the record of {name}@{version} belongs to another tenant, name or version")
    return _checked(fields, f"{name}@{version}")


def _checked(fields: dict[str, Any], reference: str) -> StoredVersion:
    expected: dict[str, tuple[type, ...]] = {
        "name": (str,),
        "version": (int,),
        "content_hash": (str,),
        "size_bytes": (int,),
        "created_at": (int, float),
        "manifest_json": (str,),
        "deleted_at": (int, float, type(None)),
        "tenant": (str,),
        "purged_at": (int, float, type(None)),
    }
    for key, types in expected.items():
        if not isinstance(fields.get(key), types):
            raise StoreError(f"the record of {reference} has no usable '{key}'")
    if not _CONTENT_HASH.fullmatch(fields["content_hash"]):
        raise StoreError(f"the record of {reference} has no usable 'content_hash'")
    return StoredVersion(**{key: fields[key] for key in expected})
