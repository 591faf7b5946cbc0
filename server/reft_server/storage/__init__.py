"""The store that several servers share: versions in a database, files in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reft_interventions.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .database_catalog import DatabaseCatalog
    from .opening import open_store
else:
    __getattr__ = lazy_exports(__name__, {"database_catalog": ("DatabaseCatalog",), "opening": ("open_store",)})

__all__ = ["DatabaseCatalog", "open_store"]
