"""The native model path: the Llama shape in float32 on a CPU, the whole layer stack in C (`native/csrc/model.c`)."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterator
from ctypes import byref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .batch import Batch
from .kv_cache import ExtentSlot, Slab
from .kv_memory import KVLayout, KVSlot
from .llama_shape import free_weight, rotary_table, sliding_window
from .native import NativeLibrary
from .native.structures import SPAN_FIELDS, AttentionShape, Config, Layer, Step
from .native.weights import Arena, PackedLinear, pack_gated, pack_linear
from .settings import WeightDtype

_STAGES_PER_LAYER = 9
_SITES = {
    # The stage of a layer before which a component is edited, and the tensor that holds it there.
    "block_output": (_STAGES_PER_LAYER, "hidden"),
    "block_input": (0, "hidden"),
    "attention_input": (1, "inputs"),
    "query_output": (2, "heads"),
    "key_output": (2, "heads"),
    "value_output": (2, "heads"),
    "attention_value_output": (3, "attended"),
    "attention_output": (4, "branch"),
    "mlp_input": (5, "inputs"),
    "mlp_activation": (6, "gated"),
    "mlp_output": (8, "branch"),
}
_COMPONENTS = tuple(_SITES)


class NativeModel:
    """The Llama shape in C. Takes the model over: its own weights are freed.

    A row's logits are the same bit for bit alone and in any batch, for any cut of a prompt into chunks, and for any
    number of threads: every sum runs in one fixed order.

    Args:
        model: one that `can_run_natively` accepts.
        max_model_len: rows of the rotary table.
        weight_dtype: how weights are stored; sums are float32 all the same.
        num_threads: of a step, the calling one among them; None = as many as torch uses.
    """

    supports_shared_prefixes = True

    def __init__(
        self,
        model: PreTrainedModel,
        max_model_len: int,
        library: NativeLibrary,
        *,
        weight_dtype: WeightDtype = "model",
        num_threads: int | None = None,
    ) -> None:
        decoder: Any = model.model
        config = model.config
        self._library = library
        self._weights = _Weights(model, max_model_len, library.panel_columns, weight_dtype)
        self._num_layers = len(decoder.layers)
        shape = (config.num_key_value_heads, decoder.layers[0].self_attn.head_dim)
        num_query, num_key = config.num_attention_heads * shape[1], shape[0] * shape[1]
        self._columns = {
            "query_output": slice(0, num_query),
            "key_output": slice(num_query, num_query + num_key),
            "value_output": slice(num_query + num_key, num_query + 2 * num_key),
        }
        self.kv_layout = KVLayout(((*shape, shape[1]),) * self._num_layers, model.dtype, model.device)
        self._sizes = {
            "hidden": config.hidden_size,
            "inputs": config.hidden_size,
            "branch": config.hidden_size,
            "heads": num_query + 2 * num_key,
            "attended": num_query,
            "gated": config.intermediate_size,
        }
        self._vocab_size: int = config.vocab_size
        self._buffers: dict[str, Tensor] = {}
        self._up_buffer: Tensor | None = None
        self._slab_tables: weakref.WeakKeyDictionary[Slab, array[int]] = weakref.WeakKeyDictionary()
        self._handle = library.create(self._weights.config, num_threads or torch.get_num_threads())
        if not self._handle:
            raise MemoryError("no memory for the native model")
        # Not at exit: a step may be running in another thread then, and the process gives everything back anyway.
        weakref.finalize(self, library.destroy, self._handle).atexit = False

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`, float32; K and V land in the cache."""
        num_tokens, num_sampled = batch.num_tokens, len(batch.sampled_rows)
        self._reserve(max(num_tokens, num_sampled))
        edits_activation = any(component == "mlp_activation" for _, component in batch.edits.sites)
        token_ids, sampled_rows = array("q", batch.token_ids), array("q", batch.sampled_rows)
        spans = array("q", self._spans(batch))
        logits = torch.empty(num_sampled, self._vocab_size)
        step = Step(
            num_tokens=num_tokens,
            num_spans=len(spans) // SPAN_FIELDS,
            num_sampled=num_sampled,
            token_ids=_address(token_ids),
            sampled_rows=_address(sampled_rows),
            spans=_address(spans),
            logits=logits.data_ptr(),
            up=self._up(num_tokens).data_ptr() if edits_activation else None,
            **{name: buffer.data_ptr() for name, buffer in self._buffers.items()},
        )
        if self._library.begin(self._handle, byref(step)):
            raise MemoryError("no memory for a step of the native model")
        first = 0
        for stage, layer, component in sorted(_edited(batch)):
            self._library.run(self._handle, first, stage)
            self._edit(batch, layer, _COMPONENTS[component])
            first = stage
        self._library.run(self._handle, first, 2 + _STAGES_PER_LAYER * self._num_layers)
        return logits

    def _edit(self, batch: Batch, layer: int, component: str) -> None:
        _, name = _SITES[component]
        columns = self._columns.get(component, slice(None))
        batch.edits.apply(self._buffers[name][: batch.num_tokens, columns], layer, component)

    def _up(self, num_rows: int) -> Tensor:
        """Where `up` waits while its activation is edited: most steps need none."""
        if self._up_buffer is None or self._up_buffer.shape[0] < num_rows:
            self._up_buffer = torch.empty(num_rows, self._sizes["gated"])
        return self._up_buffer

    def _reserve(self, num_rows: int) -> None:
        if not self._buffers or self._buffers["hidden"].shape[0] < num_rows:
            self._buffers = {name: torch.empty(num_rows, size) for name, size in self._sizes.items()}

    def _spans(self, batch: Batch) -> Iterator[int]:
        """`struct span` of every chunk; those that share a prefix come one after the other."""
        first_token = 0
        spans = []
        for chunk in batch.chunks:
            sequence, shared = chunk.sequence, chunk.sequence.shared_prefix
            assert sequence.slot is not None  # the scheduler gave it one
            own = self._segment(sequence.slot)
            prefix = (0, 0, 0, 0) if shared is None else (*self._segment(shared.slot), shared.num_tokens)
            spans.append((prefix, (first_token, chunk.num_tokens, chunk.start, *own, *prefix)))
            first_token += chunk.num_tokens
        for _, span in sorted(spans):
            yield from span

    def _segment(self, slot: KVSlot) -> tuple[int, int, int]:
        """Address of the slab's table of K and V, row, capacity."""
        assert isinstance(slot, ExtentSlot)  # of this path's layout
        table = self._slab_tables.get(slot.slab)
        if table is None:
            pairs = zip(slot.slab.keys, slot.slab.values, strict=True)
            table = array("q", [tensor.data_ptr() for pair in pairs for tensor in pair])
            self._slab_tables[slot.slab] = table
        return _address(table), slot.row, slot.slab.capacity


def _edited(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """(stage before which it happens, layer, index of the component), for each edited site of a step."""
    for layer, component in batch.edits.sites:
        yield 1 + _STAGES_PER_LAYER * layer + _SITES[component][0], layer, _COMPONENTS.index(component)


def _address(numbers: array[int]) -> int:
    return numbers.buffer_info()[0]


@dataclass(frozen=True)
class _PackedLayer:
    norms: dict[str, Tensor | None]
    linears: dict[str, PackedLinear]
    sliding_window: int | None

    def structure(self) -> Layer:
        return Layer(
            **{name: None if norm is None else norm.data_ptr() for name, norm in self.norms.items()},
            **{name: linear.structure() for name, linear in self.linears.items()},
            sliding_window=self.sliding_window or 0,
        )


class _Weights:
    """A model's weights as C reads them; layer by layer, the model's own are freed.

    Attributes:
        config: `struct config`; its addresses are valid as long as this object lives.
    """

    def __init__(
        self, model: PreTrainedModel, max_model_len: int, panel_columns: int, weight_dtype: WeightDtype
    ) -> None:
        decoder: Any = model.model
        lm_head: Any = model.lm_head
        self._panel_columns = panel_columns
        self._weight_dtype = weight_dtype
        self._arena = Arena()
        self._rotation = (
            torch.view_as_real(rotary_table(decoder.rotary_emb, max_model_len, model.dtype, model.device))
            .permute(2, 0, 1)
            .contiguous()
        )  # [cos and sin, max_model_len, head_dim / 2]
        self._layers = [self._pack_layer(layer) for layer in decoder.layers]
        is_tied = lm_head.weight is decoder.embed_tokens.weight
        self._head = self._pack(lm_head)
        self._embedding = None if is_tied else decoder.embed_tokens.weight.detach()
        if is_tied:
            decoder.embed_tokens.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self._final_norm = decoder.norm.weight.detach()
        self._structures = (Layer * len(self._layers))(*(layer.structure() for layer in self._layers))
        attention = decoder.layers[0].self_attn
        self.config = Config(
            num_layers=len(self._layers),
            hidden_size=model.config.hidden_size,
            intermediate_size=model.config.intermediate_size,
            attention=AttentionShape(
                model.config.num_attention_heads,
                model.config.num_key_value_heads,
                attention.head_dim,
                attention.scaling,
            ),
            epsilon=decoder.norm.variance_epsilon,
            embedding=None if self._embedding is None else self._embedding.data_ptr(),
            cosine=self._rotation[0].data_ptr(),
            sine=self._rotation[1].data_ptr(),
            final_norm=self._final_norm.data_ptr(),
            head=self._head.structure(),
            layers=self._structures,
        )

    def _pack_layer(self, layer: Any) -> _PackedLayer:
        attention, mlp = layer.self_attn, layer.mlp
        norms = {
            "input_norm": layer.input_layernorm,
            "query_norm": getattr(attention, "q_norm", None),
            "key_norm": getattr(attention, "k_norm", None),
            "mlp_norm": layer.post_attention_layernorm,
        }
        gate_up = pack_gated(
            mlp.gate_proj.weight.detach(),
            mlp.up_proj.weight.detach(),
            None if mlp.gate_proj.bias is None else (mlp.gate_proj.bias.detach(), mlp.up_proj.bias.detach()),
            self._panel_columns,
            self._weight_dtype,
            arena=self._arena,
        )
        free_weight(mlp.gate_proj)
        free_weight(mlp.up_proj)
        linears = {
            "qkv": self._pack(attention.q_proj, attention.k_proj, attention.v_proj),
            "attention_output": self._pack(attention.o_proj),
            "gate_up": gate_up,
            "down": self._pack(mlp.down_proj),
        }
        weights = {name: None if norm is None else norm.weight.detach() for name, norm in norms.items()}
        return _PackedLayer(weights, linears, sliding_window(attention))

    def _pack(self, *projections: nn.Linear) -> PackedLinear:
        """Several projections of one input as one product."""
        weight = torch.cat([one.weight.detach() for one in projections])
        biases = [one.bias.detach() for one in projections if one.bias is not None]
        bias = torch.cat(biases) if biases else None
        for one in projections:
            free_weight(one)
        return pack_linear(weight, bias, self._panel_columns, self._weight_dtype, arena=self._arena)
