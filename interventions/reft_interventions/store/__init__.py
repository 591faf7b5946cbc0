"""Named, versioned intervention sets, in a folder or in services that servers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .blobs import BlobStore, DiskBlobs
    from .catalog import Catalog, CatalogTransaction
    from .condition import PutCondition
    from .intervention_store import InterventionStore, RebuildReport
    from .names import Reference, check_alias, check_name, check_version, is_alias, parse_reference
    from .quota import StoreQuota
    from .records import StoredVersion
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "blobs": ("BlobStore", "DiskBlobs"),
            "catalog": ("Catalog", "CatalogTransaction"),
            "condition": ("PutCondition",),
            "intervention_store": ("InterventionStore", "RebuildReport"),
            "names": ("Reference", "check_alias", "check_name", "check_version", "is_alias", "parse_reference"),
            "quota": ("StoreQuota",),
            "records": ("StoredVersion",),
        },
    )

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
