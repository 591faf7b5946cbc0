"""Distributed alignment search: learn the subspace in which a source prompt's rows carry one variable.

Source: Geiger et al. 2024, arXiv:2303.02536, in the low-rank form of Wu et al. 2024, arXiv:2404.03592.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import TrainingError
from ..hooks import RowFunction, SiteEdit, hook_edits
from ..manifest import InterventionSpec
from .batches import collate, length_order
from .data import TokenizedExample


def check_sources(examples: Sequence[TokenizedExample], specs: Sequence[InterventionSpec]) -> None:
    """Each row has a source prompt, with as many edited tokens as its own prompt has.

    Raises:
        TrainingError: naming the line.
    """
    for example in examples:
        if example.source_ids is None:
            raise TrainingError(f"line {example.line}: --method das needs a source prompt in every row", param="data")
        for spec in specs:
            rule = spec.intervention_positions
            base, source = (
                sum((length if end is None else end) - start for start, end in rule.intervals(length))
                for length in (len(example.prompt_ids), len(example.source_ids))
            )
            if base != source:
                raise TrainingError(
                    f"line {example.line}: positions {spec.positions} edit {base} tokens of the prompt and {source} "
                    "of the source; the i-th takes the row of the i-th, so these must agree",
                    param="data",
                )


class SourceRows:
    """The rows of source prompts at the edited sites: constants of the frozen model, computed once a prompt.

    Args:
        model: the frozen base model.
        specs: the sites, in the order of the set.
        examples: rows with a source.
        pad_token_id: any token; padding is masked.
        batch_size: prompts in one forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        specs: Sequence[InterventionSpec],
        examples: Sequence[TokenizedExample],
        pad_token_id: int,
        batch_size: int,
    ) -> None:
        self._specs = specs
        self._rows: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
        prompts = sorted({example.source_ids for example in examples if example.source_ids is not None})
        for order in length_order([len(prompt) for prompt in prompts], batch_size):
            self._capture(model, [prompts[index] for index in order], pad_token_id)

    def rows(self, spec_index: int, examples: Sequence[TokenizedExample]) -> Tensor:
        """What the edited rows of a batch of these examples receive, in their order: `[num_edited_rows, width]`."""
        return torch.cat([self._rows[example.source_ids or ()][spec_index] for example in examples])

    @torch.no_grad()
    def _capture(self, model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], pad_token_id: int) -> None:
        # A stand-in answer of one token, which is predicted and never read, makes `collate` pad just the prompts.
        batch = collate([TokenizedExample(ids, (0,), 0) for ids in prompts], pad_token_id)
        noted: list[Tensor | None] = [None] * len(self._specs)

        def note(index: int) -> RowFunction:
            def keep(rows: Tensor) -> Tensor:
                noted[index] = rows.clone()
                return rows

            return keep

        edits = [SiteEdit.of(spec, note(index)) for index, spec in enumerate(self._specs)]
        with hook_edits(model, edits, batch.prompt_lengths):
            model.base_model(
                input_ids=batch.input_ids.to(model.device),
                attention_mask=batch.attention_mask.to(model.device),
                position_ids=batch.position_ids.to(model.device),
                use_cache=False,
            )
        by_spec = [self._split(spec, rows, prompts) for spec, rows in zip(self._specs, noted, strict=True)]
        for row, prompt in enumerate(prompts):
            self._rows[prompt] = tuple(split[row] for split in by_spec)

    def _split(
        self, spec: InterventionSpec, rows: Tensor | None, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, ...]:
        if rows is None:  # no prompt of this batch has an edited token here
            return tuple(torch.zeros(0) for _ in prompts)
        rule = spec.intervention_positions
        counts = [sum((end or 0) - start for start, end in rule.intervals(len(prompt))) for prompt in prompts]
        return tuple(torch.split(rows, counts))
