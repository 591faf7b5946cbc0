"""How pyreft itself runs a batch: its own position rule, its pad token in front, left padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyreft
import torch
from pyreft import parse_positions

PROMPT_LENGTHS = (9, 6, 3, 2, 1)
VOCAB_SIZE = 40


def prompts() -> list[torch.Tensor]:
    """The same token ids everywhere."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(1, VOCAB_SIZE, (length,), generator=generator) for length in PROMPT_LENGTHS]


def run_batch(model: Any, rows: Sequence[torch.Tensor], positions: str | None, *, is_tied: bool) -> torch.Tensor:
    """The logits of every prompt token, `[sum of lengths, vocab_size]`, of one left-padded batch.

    As in `pyreft.ReftDataset`, a pad token stands in front of every prompt and takes the edits that a short prompt
    has no token for. `positions` None edits every token.
    """
    width = max(len(row) for row in rows) + 1
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :] = row
        mask[index, width - len(row) :] = 1
    inputs = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(-1) - 1).clamp(min=0),
    }
    num_interventions = len(model.interventions)
    locations = [_locations(row, width, positions, num_interventions, is_tied) for row in rows]
    per_intervention = [[locations[row][i] for row in range(len(rows))] for i in range(num_interventions)]
    with torch.no_grad():
        _, output = model(inputs, unit_locations={"sources->base": (None, per_intervention)})
    return torch.cat([output.logits[i, width - len(row) :] for i, row in enumerate(rows)])


def _locations(
    row: torch.Tensor, width: int, positions: str | None, num_interventions: int, is_tied: bool
) -> list[list[int]]:
    padding = width - len(row)
    if positions is None:
        return [list(range(width))] * num_interventions
    own = pyreft.get_intervention_locations(
        last_position=len(row),
        positions=positions,
        num_interventions=num_interventions,
        share_weights=is_tied,
        pad_mode="first",
    )
    # For untied ends a prompt of one token gets longer lists than the others, all of pad positions, and no batch takes
    # lists of different lengths: keep as many as the rule has positions.
    num_positions = sum(parse_positions(positions)) if is_tied else max(parse_positions(positions))
    return [[index + padding if index >= 0 else 0 for index in one][:num_positions] for one in own]
