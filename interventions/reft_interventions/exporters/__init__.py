"""Intervention sets as checkpoints of other libraries."""

from __future__ import annotations

from .pyreft import export_pyreft

__all__ = ["export_pyreft"]
