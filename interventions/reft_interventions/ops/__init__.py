"""Batched edits of hidden states."""

from .torch_ops import EditGroup, apply_edits

__all__ = ["EditGroup", "apply_edits"]
