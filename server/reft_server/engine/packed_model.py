"""The packed model path: a compact forward of the Llama shape (Llama, SmolLM2, Mistral, Qwen2, Qwen3).

The same frozen weights as transformers' modules, q/k/v and gate/up packed into one product each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from reft_interventions.folded import SiteKey

from .batch import Batch
from .kernels import AttentionLayer, AttentionShape, Kernels, Norm, TorchKernels
from .kv_memory import KVLayout
from .linear import Linear, fewest_rows
from .llama_shape import free_weight, rotary_table, sliding_window


@dataclass(frozen=True)
class _PackedLayer:
    input_norm: Norm
    qkv: Linear
    attention: AttentionLayer
    attention_output: Linear
    mlp_norm: Norm
    gate_up: Linear
    down: Linear


class PackedModel:
    """The Llama shape over packed weights. Takes the model over: its own linear weights are freed.

    Args:
        model: one that `can_pack` accepts.
        max_model_len: rows of the rotary table.
        make_kernels: how it is computed, from the attention's shape and the rotary table.
    """

    supports_shared_prefixes = False

    def __init__(
        self,
        model: PreTrainedModel,
        max_model_len: int,
        make_kernels: Callable[[AttentionShape, Tensor], Kernels[Any]] = TorchKernels,
    ) -> None:
        decoder: Any = model.model
        config = model.config
        attention = decoder.layers[0].self_attn
        self._shape = AttentionShape(
            config.num_attention_heads, config.num_key_value_heads, attention.head_dim, attention.scaling
        )
        rotary = rotary_table(decoder.rotary_emb, max_model_len, model.dtype, model.device)
        self.kernels = make_kernels(self._shape, rotary)
        self._embedding: Tensor = decoder.embed_tokens.weight.detach()
        self._layers = [self._pack(index, layer) for index, layer in enumerate(decoder.layers)]
        self._norm = _norm(decoder.norm)
        lm_head: Any = model.lm_head
        self.vocab_size: int = lm_head.weight.shape[0]
        self._fewest_rows = fewest_rows(lm_head.weight)
        self._lm_head = self.kernels.linear(lm_head.weight, lm_head.bias)
        if lm_head.weight is not decoder.embed_tokens.weight:
            free_weight(lm_head)
        shape = (self._shape.num_kv_heads, self._shape.head_dim, self._shape.head_dim)
        self.kv_layout = KVLayout(
            (shape,) * len(self._layers), model.dtype, model.device, is_paged=self.kernels.is_paged
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`, model dtype; K and V land in the cache."""
        return self.run(self.begin(batch))[: len(batch.sampled_rows)]

    def begin(self, batch: Batch) -> Any:
        """A step for `run`, which may sample rows of padding behind the batch's own."""
        return self.kernels.begin(batch, self._fewest_rows)

    def run(self, step: Any) -> Tensor:
        """Logits of the rows `step.sampled`; `step` is of the kernels' own making."""
        kernels = self.kernels
        hidden = F.embedding(step.input_ids, self._embedding)  # [num_rows, hidden_size]
        branch = None
        for index, layer in enumerate(self._layers):
            inputs = kernels.add_norm(step, hidden, branch, layer.input_norm, _between_layers(index))
            kernels.edit(step, inputs, index, "attention_input")
            values = kernels.attend(step, layer.qkv(inputs), layer.attention)
            kernels.edit(step, values, index, "attention_value_output")
            attended = layer.attention_output(values)
            kernels.edit(step, attended, index, "attention_output")
            inputs = kernels.add_norm(step, hidden, attended, layer.mlp_norm, ())
            kernels.edit(step, inputs, index, "mlp_input")
            branch = layer.down(kernels.gate(step, layer.gate_up(inputs), index))
            kernels.edit(step, branch, index, "mlp_output")
        if branch is not None:
            kernels.add(step, hidden, branch, _between_layers(len(self._layers))[:1])
        return self._lm_head(self._norm(hidden.index_select(0, step.sampled)))

    def _pack(self, index: int, layer: Any) -> _PackedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        has_norms = hasattr(attention, "q_norm")
        packed = _PackedLayer(
            input_norm=_norm(layer.input_layernorm),
            qkv=self._pack_qkv(attention),
            attention=AttentionLayer(
                index,
                query_norm=_norm(attention.q_norm, self._shape.head_dim) if has_norms else None,
                key_norm=_norm(attention.k_norm, self._shape.head_dim) if has_norms else None,
                sliding_window=sliding_window(attention),
            ),
            attention_output=self.kernels.linear(attention.o_proj.weight, attention.o_proj.bias),
            mlp_norm=_norm(layer.post_attention_layernorm),
            gate_up=self._pack_rows(mlp.gate_proj, mlp.up_proj),
            down=self.kernels.linear(mlp.down_proj.weight, mlp.down_proj.bias),
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
            order = _pair_order(projection.weight.shape[0], self._shape.head_dim) if is_rotated else slice(None)
            weights.append(projection.weight.detach()[order])
            if projection.bias is not None:
                biases.append(projection.bias.detach()[order])
        return self.kernels.linear(torch.cat(weights), torch.cat(biases) if biases else None)

    def _pack_rows(self, *projections: Any) -> Linear:
        biases = [projection.bias.detach() for projection in projections if projection.bias is not None]
        weights = torch.cat([projection.weight.detach() for projection in projections])
        return self.kernels.linear(weights, torch.cat(biases) if biases else None)


def _pair_order(num_rows: int, head_dim: int) -> Tensor:
    """Within each head: 0, half, 1, half + 1, …"""
    pairs = torch.arange(head_dim).view(2, -1).t().flatten()
    return (torch.arange(0, num_rows, head_dim)[:, None] + pairs).flatten()


def _between_layers(index: int) -> tuple[SiteKey, ...]:
    """The sites of the residual stream between the layer before `index` and that layer, in order."""
    output = ((index - 1, "block_output"),) if index else ()
    return (*output, (index, "block_input"))


def _norm(module: Any, paired_head_dim: int | None = None) -> Norm:
    weight = module.weight.detach()
    if paired_head_dim is not None:
        weight = weight[_pair_order(paired_head_dim, paired_head_dim)]
    return Norm(weight, module.variance_epsilon)
