"""A folder of named, versioned intervention sets."""

from __future__ import annotations

from .condition import PutCondition
from .intervention_store import InterventionStore
from .names import Reference, check_name, check_version, parse_reference
from .quota import StoreQuota
from .reconcile import RebuildReport
from .records import StoredVersion

__all__ = [
    "InterventionStore",
    "PutCondition",
    "RebuildReport",
    "Reference",
    "StoreQuota",
    "StoredVersion",
    "check_name",
    "check_version",
    "parse_reference",
]
