"""The packed model path: a compact forward of the Llama shape (Llama, SmolLM2, Mistral, Qwen2, Qwen3).

The same frozen weights as transformers' modules, q/k/v and gate/up packed into one product each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import attend
from .batch import Batch
from .kv_cache import KVLayout
from .linear import Linear, fewest_rows, make_linear
from .llama_shape import free_weight, rotary_table, sliding_window


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    epsilon: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class _PackedLayer:
    input_norm: _Norm
    qkv: Linear
    query_norm: _Norm | None
    key_norm: _Norm | None
    attention_output: Linear
    mlp_norm: _Norm
    gate_up: Linear
    down: Linear
    sliding_window: int | None


class PackedModel:
    """The Llama shape over packed weights. Takes the model over: its own linear weights are freed.

    Args:
        model: one that `can_pack` accepts.
        max_model_len: rows of the rotary table.
    """

    supports_shared_prefixes = False

    def __init__(self, model: PreTrainedModel, max_model_len: int) -> None:
        decoder: Any = model.model
        config = model.config
        attention = decoder.layers[0].self_attn
        self._head_dim: int = attention.head_dim
        self._num_heads: int = config.num_attention_heads
        self._num_kv_heads: int = config.num_key_value_heads
        self._scale: float = attention.scaling
        self._rotary = rotary_table(decoder.rotary_emb, max_model_len, model.dtype, model.device)
        self._embedding: Tensor = decoder.embed_tokens.weight.detach()
        self._layers = [self._pack(layer) for layer in decoder.layers]
        self._norm = _norm(decoder.norm)
        lm_head: Any = model.lm_head
        self._fewest_rows = fewest_rows(lm_head.weight)
        self._lm_head = make_linear(lm_head.weight, lm_head.bias)
        if lm_head.weight is not decoder.embed_tokens.weight:
            free_weight(lm_head)
        shape = (self._num_kv_heads, self._head_dim, self._head_dim)
        self.kv_layout = KVLayout((shape,) * len(self._layers), model.dtype, model.device)

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`, model dtype; K and V land in the cache."""
        edit = batch.edits.apply
        # Rows of padding come last; they are in no sequence, so nothing attends to them and nothing reads them.
        padding = (0, max(self._fewest_rows - batch.num_tokens, 0))
        positions = F.pad(batch.positions, padding)
        rotation = self._rotary.index_select(0, positions)[:, None]  # [num_rows, 1, head_dim / 2], complex
        hidden = F.embedding(F.pad(batch.input_ids, padding), self._embedding)  # [num_rows, hidden_size]
        for index, layer in enumerate(self._layers):
            edit(hidden, index, "block_input")
            inputs = layer.input_norm(hidden)
            edit(inputs, index, "attention_input")
            values = self._attend(batch, index, layer, inputs, rotation)
            edit(values, index, "attention_value_output")
            attended = layer.attention_output(values)
            edit(attended, index, "attention_output")
            hidden += attended
            inputs = layer.mlp_norm(hidden)
            edit(inputs, index, "mlp_input")
            gate, up = layer.gate_up(inputs).chunk(2, dim=-1)
            activation = F.silu(gate)
            edit(activation, index, "mlp_activation")
            outputs = layer.down(activation.mul_(up))
            edit(outputs, index, "mlp_output")
            hidden += outputs
            edit(hidden, index, "block_output")
        num_sampled = len(batch.sampled_rows)
        sampled = F.pad(batch.sampled_index, (0, max(self._fewest_rows - num_sampled, 0)))
        return self._lm_head(self._norm(hidden.index_select(0, sampled)))[:num_sampled]

    def _attend(self, batch: Batch, index: int, layer: _PackedLayer, inputs: Tensor, rotation: Tensor) -> Tensor:
        heads = layer.qkv(inputs).unflatten(-1, (-1, self._head_dim))  # [num_tokens, heads + 2 * kv_heads, head_dim]
        num_rotated = self._num_heads + self._num_kv_heads
        _edit_heads(batch, index, "query_output", heads[:, : self._num_heads], is_rotated=True)
        _edit_heads(batch, index, "key_output", heads[:, self._num_heads : num_rotated], is_rotated=True)
        _edit_heads(batch, index, "value_output", heads[:, num_rotated:], is_rotated=False)
        rotated, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = rotated.split((self._num_heads, self._num_kv_heads), dim=1)
            rotated = torch.cat((layer.query_norm(query), layer.key_norm(key)), dim=1)
        rotated = _rotate(rotated, rotation)
        query, key = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
        out = attend(batch, index, query, key, value, scale=self._scale, sliding_window=layer.sliding_window)
        return out.flatten(1)

    def _pack(self, layer: Any) -> _PackedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        packed = _PackedLayer(
            input_norm=_norm(layer.input_layernorm),
            qkv=self._pack_qkv(attention),
            query_norm=_norm(attention.q_norm, self._head_dim) if has_norms else None,
            key_norm=_norm(attention.k_norm, self._head_dim) if has_norms else None,
            attention_output=make_linear(attention.o_proj.weight, attention.o_proj.bias),
            mlp_norm=_norm(layer.post_attention_layernorm),
            gate_up=_pack_rows(mlp.gate_proj, mlp.up_proj),
            down=make_linear(mlp.down_proj.weight, mlp.down_proj.bias),
            sliding_window=sliding_window(attention),
        )
        for module in (*attention.children(), *mlp.children()):
            if isinstance(module, nn.Linear):
                free_weight(module)
        return packed

    def _pack_qkv(self, attention: Any) -> Linear:
        """q, k and v in one product; rows of q and k reordered so that each rotary pair is adjacent.

        The scores q·k don't change, and one complex product rotates all heads.
        """
        weights, biases = [], []
        for projection, is_rotated in ((attention.q_proj, True), (attention.k_proj, True), (attention.v_proj, False)):
            order = _pair_order(projection.weight.shape[0], self._head_dim) if is_rotated else slice(None)
            weights.append(projection.weight.detach()[order])
            if projection.bias is not None:
                biases.append(projection.bias.detach()[order])
        return make_linear(torch.cat(weights), torch.cat(biases) if biases else None)


def _pair_order(num_rows: int, head_dim: int) -> Tensor:
    """Within each head: 0, half, 1, half + 1, …"""
    pairs = torch.arange(head_dim).view(2, -1).t().flatten()
    return (torch.arange(0, num_rows, head_dim)[:, None] + pairs).flatten()


def _edit_heads(batch: Batch, layer: int, component: str, heads: Tensor, *, is_rotated: bool) -> None:
    """Edit a view `[num_tokens, num_heads, head_dim]` in the model's own order of columns."""
    if not batch.edits.has_rows_at(layer, component):
        return
    ordered = heads.unflatten(-1, (-1, 2)).transpose(-1, -2) if is_rotated else heads
    rows = ordered.flatten(1)  # [num_tokens, num_heads * head_dim], a copy
    batch.edits.apply(rows, layer, component)
    ordered.copy_(rows.view(ordered.shape))


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding of `[num_tokens, num_heads, head_dim]` whose pairs are adjacent, computed in float32."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(heads.dtype)


def _norm(module: Any, paired_head_dim: int | None = None) -> _Norm:
    weight = module.weight.detach()
    if paired_head_dim is not None:
        weight = weight[_pair_order(paired_head_dim, paired_head_dim)]
    return _Norm(weight, module.variance_epsilon)


def _pack_rows(*projections: Any) -> Linear:
    biases = [projection.bias.detach() for projection in projections if projection.bias is not None]
    return make_linear(torch.cat([p.weight.detach() for p in projections]), torch.cat(biases) if biases else None)
