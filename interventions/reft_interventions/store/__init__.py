"""Named, versioned intervention sets, in a folder or in services that servers share."""

from __future__ import annotations

from .blobs import BlobStore, DiskBlobs
from .catalog import Catalog, CatalogTransaction
from .condition import PutCondition
from .intervention_store import InterventionStore, RebuildReport
from .names import Reference, check_alias, check_name, check_version, is_alias, parse_reference
from .quota import StoreQuota
from .records import StoredVersion

__all__ = [
    "BlobStore",
    "Catalog",
    "CatalogTransaction",
    "DiskBlobs",
    "InterventionStore",
    "PutCondition",
    "RebuildReport",
    "Reference",
    "StoreQuota",
    "StoredVersion",
    "check_alias",
    "check_name",
    "check_version",
    "is_alias",
    "parse_reference",
]
