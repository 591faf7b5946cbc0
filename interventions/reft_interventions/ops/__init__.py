"""Batched edits of hidden states."""

from .stacks import EditedRows, EditStacks
from .torch_ops import EditGroup, apply_edits

__all__ = ["EditGroup", "EditStacks", "EditedRows", "apply_edits"]
