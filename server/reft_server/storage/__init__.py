"""The store that several servers share: versions in a database, files in a bucket."""

from __future__ import annotations

from .database_catalog import DatabaseCatalog
from .opening import open_store

__all__ = ["DatabaseCatalog", "open_store"]
