"""Which rows of a forward pass are which tokens of which prompt, under padding and a KV cache."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import InterventionShapeError
from .positions import InterventionPositions

RowIndex = tuple[Tensor, Tensor]
"""(batch row, column) of the rows to edit, `[num_rows]` int64 each."""


class PositionTracker:
    """Follows the forward passes of a decoder and answers which rows a position rule selects.

    Args:
        module: the decoder module whose calls `observe` sees.
        prompt_lengths: tokens of each row's prompt; None = those of the last pass that began without a cache.
    """

    def __init__(self, module: nn.Module, prompt_lengths: Sequence[int] | None) -> None:
        self._signature = inspect.signature(module.forward)
        self._given = None if prompt_lengths is None else tuple(int(length) for length in prompt_lengths)
        self._lengths: tuple[int, ...] | None = self._given
        self._positions = torch.zeros(0, 0, dtype=torch.int64)
        self._cache: dict[InterventionPositions, RowIndex | None] = {}

    def observe(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook: note the absolute position of every row; padding is -1.

        Raises:
            InterventionShapeError: the mask or the prompt lengths don't fit the batch, or a pass continues a cache
                whose prompt is unknown.
        """
        arguments = self._signature.bind_partial(*args, **kwargs).arguments
        inputs = arguments.get("input_ids")
        inputs = arguments.get("inputs_embeds") if inputs is None else inputs
        if inputs is None:
            raise InterventionShapeError("the model was called with neither input_ids nor inputs_embeds")
        num_rows, num_columns = int(inputs.shape[0]), int(inputs.shape[1])
        cache = arguments.get("past_key_values")
        num_past = 0 if cache is None else int(cache.get_seq_length())
        positions = _absolute_positions(arguments.get("attention_mask"), num_rows, num_columns, num_past)
        if self._given is None and num_past == 0:
            self._lengths = tuple((positions >= 0).sum(dim=1).tolist())
        if self._lengths is None:
            raise InterventionShapeError("the forward pass continues a cache: give prompt_lengths to attach")
        if len(self._lengths) != num_rows:
            raise InterventionShapeError(f"{len(self._lengths)} prompt lengths were given for {num_rows} rows")
        self._positions, self._cache = positions, {}

    def index(self, rule: InterventionPositions, hidden: Tensor) -> RowIndex | None:
        """The rows of `hidden` `[batch, num_tokens, hidden_size]` that `rule` selects; None when there are none."""
        if rule not in self._cache:
            self._cache[rule] = self._select(rule, hidden.device)
        return self._cache[rule]

    def _select(self, rule: InterventionPositions, device: torch.device) -> RowIndex | None:
        selected = torch.zeros_like(self._positions, dtype=torch.bool)  # [batch, num_tokens]
        for row, length in enumerate(self._lengths or ()):
            positions = self._positions[row]
            for start, end in rule.intervals(length):
                inside = positions >= start
                selected[row] |= inside if end is None else inside & (positions < end)
        if not selected.any():
            return None
        rows, columns = selected.nonzero(as_tuple=True)
        return rows.to(device), columns.to(device)


def _absolute_positions(mask: Any, num_rows: int, num_columns: int, num_past: int) -> Tensor:
    """Each row's token positions without padding, `[num_rows, num_columns]` int64 on the CPU; padding is -1."""
    if mask is None:
        return torch.arange(num_past, num_past + num_columns).expand(num_rows, -1)
    if isinstance(mask, Mapping) or mask.ndim != 2:
        raise InterventionShapeError(
            "interventions need a two-dimensional attention mask; use a dynamic cache and pass no prepared masks"
        )
    if tuple(mask.shape) != (num_rows, num_past + num_columns):
        raise InterventionShapeError(
            f"the attention mask has shape {list(mask.shape)}, expected {[num_rows, num_past + num_columns]}"
        )
    is_token: Tensor = mask.to("cpu") != 0
    positions = is_token.to(torch.int64).cumsum(dim=1) - 1
    positions = positions.masked_fill(~is_token, -1)
    return positions[:, num_past:]
