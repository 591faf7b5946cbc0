"""`Kernels` in Triton, with K and V in pages: on a GPU, or anywhere in Triton's interpreter."""

from __future__ import annotations

import weakref
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from reft_interventions.folded import SiteKey
from reft_server.engine.batch import Batch
from reft_server.engine.edit_plan import EditPlan
from reft_server.engine.kernels import AttentionLayer, AttentionShape, Norm, edit_heads
from reft_server.engine.linear import Linear
from reft_server.engine.memory import to_device
from reft_server.engine.paged_cache import PagedSlot, PagePool

from . import launch
from .attention import Attention, TritonAttention, Varlen
from .attention_launch import Pages, prefill_block, prefill_tiles, rope_write
from .edit_tables import EditTables, RowEdits, TileEdits, build_edit_tables
from .products import Products


@dataclass(frozen=True)
class TritonStep:
    """One step's tensors on the device. Rows that decode come first, then the rows of prompts, then padding.

    Attributes:
        plan: for what the tables don't hold: captures, and edits that only torch knows; None = nothing of it.
        slots: `[num_rows]`, int64: where K and V go, page * page size + offset; -1 = nowhere.
    """

    input_ids: Tensor
    positions: Tensor
    sampled: Tensor
    slots: Tensor
    pool: PagePool
    varlen: Varlen
    edits: EditTables | None = None
    batch: Batch | None = None


class TritonKernels:
    """Fused kernels over paged K and V.

    Args:
        shape: of the attention.
        rotary: cos + i sin, `[max_model_len, head_dim / 2]`, complex64.
        attention: over the pages; None = our own.
        products: with the model's weights; None = such that may `choose` on a GPU.
    """

    name = "triton"
    is_paged = True

    def __init__(
        self,
        shape: AttentionShape,
        rotary: Tensor,
        attention: Attention | None = None,
        products: Products | None = None,
    ) -> None:
        self.products = products or Products()
        self._shape = shape
        self._attention = attention or TritonAttention(shape)
        self._rotary = torch.view_as_real(rotary).contiguous()  # [max_model_len, head_dim / 2, 2]
        self._norms: dict[int, Tensor] = {}
        self._tables: weakref.WeakKeyDictionary[EditPlan, EditTables] = weakref.WeakKeyDictionary()

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return self.products.make(weight, bias)

    def begin(self, batch: Batch, fewest_rows: int) -> TritonStep:  # noqa: ARG002 - no product of a GPU needs padding
        device = self._rotary.device
        slots = [_paged(chunk.sequence.slot) for chunk in batch.chunks]
        flat: list[int] = []
        starts = [0]
        prompts: list[tuple[int, int, int]] = []
        for chunk, slot in zip(batch.chunks, slots, strict=True):  # those that decode come first
            if chunk.num_tokens > 1:
                prompts.append((len(flat), chunk.start, chunk.num_tokens))
            flat += [slot.place(position) for position in range(chunk.start, chunk.start + chunk.num_tokens)]
            starts.append(len(flat))
        lengths = [chunk.start + chunk.num_tokens for chunk in batch.chunks]
        pool = slots[0].pool
        block = prefill_block(pool.keys[0].dtype, self._shape.head_dim, device)
        tiles = prefill_tiles(prompts, block.num_queries)
        return TritonStep(
            input_ids=batch.input_ids,
            positions=batch.positions,
            sampled=batch.sampled_index,
            slots=to_device(flat, torch.int64, device),
            pool=pool,
            varlen=Varlen(
                query_starts=to_device(starts, torch.int32, device),
                lengths=to_device(lengths, torch.int32, device),
                tables=_block_tables([slot.pages for slot in slots], device),
                num_decode=len(slots) - len(prompts),
                max_num_queries=max(chunk.num_tokens for chunk in batch.chunks),
                prefill_tiles=to_device(tiles, torch.int32, device) if tiles else None,
            ),
            edits=self.edit_tables(batch.edits, batch.num_tokens),
            batch=batch,
        )

    def edit_tables(self, plan: EditPlan, num_rows: int) -> EditTables | None:
        """The tables of a plan; kept while the plan is, so that decoding with the same sets builds none."""
        if not plan.groups:
            return None
        found = self._tables.get(plan)
        if found is None or found.index.shape[1] != num_rows:
            found = self._tables[plan] = build_edit_tables(plan.groups, num_rows, self._rotary.device)
        return found

    def add(self, step: TritonStep, hidden: Tensor, branch: Tensor, sites: SequenceOf[SiteKey]) -> None:
        self._add_edit_norm(step, hidden, branch, None, sites)

    def add_norm(
        self, step: TritonStep, hidden: Tensor, branch: Tensor | None, norm: Norm, sites: SequenceOf[SiteKey]
    ) -> Tensor:
        out = self._add_edit_norm(step, hidden, branch, norm, sites)
        assert out is not None  # there is a norm
        return out

    def _add_edit_norm(
        self, step: TritonStep, hidden: Tensor, branch: Tensor | None, norm: Norm | None, sites: SequenceOf[SiteKey]
    ) -> Tensor | None:
        """One launch where at most one site has edits and those go row by row; else the edits between two."""
        edited = [site for site in sites if _has_edits(step, site)]
        if not edited:
            return launch.add_edit_norm(hidden, branch, norm, None, None)
        fused = step.edits.sites.get(edited[0]) if step.edits is not None and len(edited) == 1 else None
        is_observed = step.batch is not None and not step.batch.edits.is_plain
        if isinstance(fused, RowEdits) and not is_observed:
            return launch.add_edit_norm(hidden, branch, norm, step.edits, fused)
        if branch is not None:
            launch.add_edit_norm(hidden, branch, None, None, None)
        for layer, component in edited:
            self.edit(step, hidden, layer, component)
        return None if norm is None else launch.add_edit_norm(hidden, None, norm, None, None)

    def edit(self, step: TritonStep, rows: Tensor, layer: int, component: str) -> None:
        site = (layer, component)
        if not _has_edits(step, site):
            return
        found = step.edits.sites.get(site) if step.edits is not None else None
        is_plain = step.batch is None or step.batch.edits.is_plain
        if found is None or not is_plain or not rows.is_contiguous():
            assert step.batch is not None  # a graph's step has nothing but tables
            step.batch.edits.apply(rows, layer, component)
        elif isinstance(found, TileEdits) and step.edits is not None:
            launch.edit_tiles(rows, step.edits, found)
        elif isinstance(found, RowEdits):
            launch.add_edit_norm(rows, None, None, step.edits, found)

    def attend(self, step: TritonStep, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        shape = self._shape
        if step.batch is not None:
            heads = qkv.unflatten(-1, (-1, shape.head_dim))
            edit_heads(step.batch, layer.index, heads, shape)
        pages = Pages(step.pool.keys[layer.index], step.pool.values[layer.index])
        query = rope_write(
            qkv, pages, self._rotary, step.positions, step.slots, layer, self._norm_weights(layer), shape
        )
        return self._attention.attend(step.varlen, query, pages, layer.sliding_window).flatten(1)

    def gate(self, step: TritonStep, gate_up: Tensor, layer: int) -> Tensor:
        if not _has_edits(step, (layer, "mlp_activation")):
            return launch.silu_mul(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        activation = F.silu(gate)
        self.edit(step, activation, layer, "mlp_activation")
        return activation.mul_(up)

    def _norm_weights(self, layer: AttentionLayer) -> Tensor | None:
        """Weights of the norms of queries and keys side by side, `[2, head_dim]`."""
        if layer.query_norm is None or layer.key_norm is None:
            return None
        if layer.index not in self._norms:
            self._norms[layer.index] = torch.stack([layer.query_norm.weight, layer.key_norm.weight])
        return self._norms[layer.index]


def _has_edits(step: TritonStep, site: SiteKey) -> bool:
    if step.batch is not None:
        return step.batch.edits.has_rows_at(*site)
    return step.edits is not None and site in step.edits.sites


def _paged(slot: object) -> PagedSlot:
    assert isinstance(slot, PagedSlot)  # of this path's layout
    return slot


def _block_tables(pages: SequenceOf[SequenceOf[int]], device: torch.device) -> Tensor:
    """`[num_sequences, max_pages]`, int32, filled up with page 0, which no kernel reads there."""
    width = max(len(row) for row in pages)
    return to_device([[*row, *[0] * (width - len(row))] for row in pages], torch.int32, device)
