"""Keys and values of the prompt tokens before the first edited one: no training step changes them.

With positions `l3` that is the whole prompt but three tokens, so after one pass over the data a step costs what those
and the answer cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from ..positions import InterventionPositions
from .batches import Batch, collate, length_order
from .data import TokenizedExample

LayerStates = tuple[Tensor, Tensor]
"""Keys and values of one layer, `[num_heads, num_tokens, head_dim]` each."""


def num_unedited(rules: Sequence[InterventionPositions], prompt_length: int) -> int:
    """Prompt tokens before the first edited one; the last prompt token never counts, as it predicts the answer."""
    starts = [interval[0] for rule in rules for interval in rule.intervals(prompt_length)]
    return max(min([*starts, prompt_length - 1]), 0)


def is_worthwhile(
    model: PreTrainedModel, prefix_lengths: Sequence[int], examples: Sequence[TokenizedExample], max_bytes: int
) -> bool:
    """Whether a cache saves at least a third of the tokens, fits, and is exact: full attention in every layer."""
    config: Any = model.config.get_text_config()
    if getattr(config, "sliding_window", None) is not None or getattr(config, "layer_types", None) is not None:
        kinds = set(getattr(config, "layer_types", None) or ["sliding_attention"])
        if kinds != {"full_attention"}:
            return False
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    num_bytes = sum(prefix_lengths) * 2 * config.num_hidden_layers * num_heads * head_dim * 4
    num_tokens = sum(example.num_tokens for example in examples)
    return num_bytes <= max_bytes and sum(prefix_lengths) * 3 >= num_tokens


class PrefixCache:
    """Prefix keys and values by example.

    Args:
        model: the frozen base model.
        examples: the training rows.
        prefix_lengths: of each example, from `num_unedited`.
        pad_token_id: any token; padding is masked.
        batch_size: rows in one forward pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        examples: Sequence[TokenizedExample],
        prefix_lengths: Sequence[int],
        pad_token_id: int,
        batch_size: int,
    ) -> None:
        self._examples, self._prefix_lengths, self._pad_token_id = examples, prefix_lengths, pad_token_id
        self._states: dict[int, list[LayerStates]] = {}
        used = [index for index, length in enumerate(prefix_lengths) if length]
        for order in length_order([prefix_lengths[index] for index in used], batch_size):
            self._fill(model, [used[position] for position in order])
        first = next(iter(self._states.values()), [])
        self._empty = [(keys[:, :0], values[:, :0]) for keys, values in first]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows behind their prefixes, which are in the batch's `past`."""
        rests = [self._rest(index) for index in indices]
        rest = collate(rests, self._pad_token_id)
        lengths = [self._prefix_lengths[index] for index in indices]
        width = max(lengths)
        if width == 0:
            return rest
        columns = torch.arange(width)
        past_mask = (columns[None, :] >= width - torch.tensor(lengths)[:, None]).to(torch.int64)
        return Batch(
            input_ids=rest.input_ids,
            attention_mask=torch.cat([past_mask, rest.attention_mask], dim=1),
            position_ids=rest.position_ids + torch.tensor(lengths)[:, None],
            labels=rest.labels,
            examples=tuple(self._examples[index] for index in indices),
            past=self._past(indices, width),
        )

    @torch.no_grad()
    def _fill(self, model: PreTrainedModel, indices: Sequence[int]) -> None:
        prefixes = [self._examples[index].prompt_ids[: self._prefix_lengths[index]] for index in indices]
        # A stand-in answer of one token, which is predicted and never read, makes `collate` pad just the prefixes.
        batch = collate([TokenizedExample(ids, (0,), 0) for ids in prefixes], self._pad_token_id)
        cache = DynamicCache()
        model.base_model(
            input_ids=batch.input_ids.to(model.device),
            attention_mask=batch.attention_mask.to(model.device),
            position_ids=batch.position_ids.to(model.device),
            past_key_values=cache,
            use_cache=True,
        )
        layers: list[Any] = list(cache.layers)
        for row, index in enumerate(indices):
            length = self._prefix_lengths[index]
            self._states[index] = [
                (layer.keys[row, :, -length:].clone(), layer.values[row, :, -length:].clone()) for layer in layers
            ]

    def _rest(self, index: int) -> TokenizedExample:
        example = self._examples[index]
        return TokenizedExample(example.prompt_ids[self._prefix_lengths[index] :], example.answer_ids, example.line)

    def _past(self, indices: Sequence[int], width: int) -> DynamicCache:
        cache = DynamicCache()
        rows = [self._states.get(index, self._empty) for index in indices]
        for layer in range(len(self._empty)):
            keys = torch.stack([_pad_left(row[layer][0], width) for row in rows])
            values = torch.stack([_pad_left(row[layer][1], width) for row in rows])
            cache.update(keys, values, layer)
        return cache


def _pad_left(states: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[1], 0))
