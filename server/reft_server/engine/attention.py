"""Attention of one layer over a step's flat batch, and the writing of its K and V. Shared by both model paths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch, DecodeGroup, PrefillChunk


def attend(
    batch: Batch,
    layer: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Write this step's K and V into the cache, then attend, each sequence to its own tokens only.

    Semantics, for a token at position p of its sequence, over positions j of the same sequence:
        out = softmax_j(softcap(query · key_j * scale)) @ value_j,  p - sliding_window < j <= p

    Args:
        batch: where each token's sequence lives.
        layer: index into the cache.
        query: `[num_tokens, num_heads, key_dim]`; rows past the batch's tokens are padding, and come out as zeros.
        key: `[num_tokens, num_kv_heads, key_dim]`; query heads share KV heads in consecutive groups.
        value: `[num_tokens, num_kv_heads, value_dim]`.

    Returns:
        `[num_tokens, num_heads, value_dim]`.
    """
    out = query.new_zeros(*query.shape[:-1], value.shape[-1])
    call = _Call(layer, query, key, value, out, scale, sliding_window, softcap)
    for group in batch.decode_groups:
        _decode(group, call)
    for chunk in batch.prefill_chunks:
        _prefill(chunk, call)
    return call.out


@dataclass(frozen=True)
class _Call:
    """What `attend` was called with, and where the result goes."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    scale: float
    sliding_window: int | None
    softcap: float | None


def _decode(group: DecodeGroup, call: _Call) -> None:
    """One token per sequence: a single call over the slab's rows, query heads packed by KV head."""
    keys, values = group.slab.keys[call.layer], group.slab.values[call.layer]
    tokens = slice(group.start, group.end)
    keys[group.rows, :, group.positions] = call.key[tokens]
    values[group.rows, :, group.positions] = call.value[tokens]
    num_kv_heads = call.key.shape[1]
    packed = call.query[tokens].unflatten(1, (num_kv_heads, -1))  # [num_sequences, num_kv_heads, group, key_dim]
    if not group.is_dense:
        packed = packed.new_zeros(group.num_view_rows, *packed.shape[1:]).index_copy_(0, group.rows, packed)
    view = slice(0, group.num_view_rows)
    attended = _attention(
        packed,
        keys[view, :, : group.max_length],
        values[view, :, : group.max_length],
        group.mask(call.sliding_window, call.query.dtype),
        call.scale,
        call.softcap,
    )
    if not group.is_dense:
        attended = attended.index_select(0, group.rows)
    call.out[tokens] = attended.flatten(1, 2)


def _prefill(chunk: PrefillChunk, call: _Call) -> None:
    """Several tokens of one sequence, after `chunk.first` that are cached already."""
    keys, values = chunk.slab.keys[call.layer][chunk.row], chunk.slab.values[call.layer][chunk.row]
    tokens = slice(chunk.start, chunk.end)
    keys[:, chunk.first : chunk.last] = call.key[tokens].transpose(0, 1)
    values[:, chunk.first : chunk.last] = call.value[tokens].transpose(0, 1)
    visible = chunk.mask(call.sliding_window, call.query.device)
    queries = call.query[tokens].transpose(0, 1)[None]  # [1, num_heads, num_tokens, key_dim]
    past_keys, past_values = keys[None, :, : chunk.last], values[None, :, : chunk.last]
    if call.softcap is None:
        attended = F.scaled_dot_product_attention(
            queries, past_keys, past_values, visible, is_causal=visible is None, scale=call.scale, enable_gqa=True
        )
    else:
        attended = _softcapped_prefill(queries, past_keys, past_values, visible, call.scale, call.softcap)
    call.out[tokens] = attended[0].transpose(0, 1)


def _softcapped_prefill(
    query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None, scale: float, softcap: float
) -> Tensor:
    num_tokens, num_kv_heads = query.shape[2], keys.shape[1]
    if visible is None:
        visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=query.device).tril()
    mask = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill_(~visible, float("-inf"))
    groups = query.shape[1] // num_kv_heads
    return _attention(
        query, keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), mask, scale, softcap
    )


def _attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    scores = torch.matmul(query, keys.transpose(-1, -2)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.matmul(scores.softmax(-1, dtype=torch.float32).to(query.dtype), values)
