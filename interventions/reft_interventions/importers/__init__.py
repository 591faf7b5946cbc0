"""Checkpoints of other libraries as intervention sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .draft import ImportedSet
    from .formats import READERS, detect_format, import_checkpoint
    from .options import ImportOptions
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "draft": ("ImportedSet",),
            "formats": ("READERS", "detect_format", "import_checkpoint"),
            "options": ("ImportOptions",),
        },
    )

__all__ = ["READERS", "ImportOptions", "ImportedSet", "detect_format", "import_checkpoint"]
