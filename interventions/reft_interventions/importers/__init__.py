"""Checkpoints of other libraries as intervention sets."""

from __future__ import annotations

from .draft import ImportedSet
from .formats import READERS, detect_format, import_checkpoint
from .options import ImportOptions

__all__ = ["READERS", "ImportOptions", "ImportedSet", "detect_format", "import_checkpoint"]
