"""Decode steps replayed from CUDA graphs: one per batch-size bucket, and a second one with the edits inside.

A graph reads static buffers. A step fills them, replays, and takes its rows of the logits: no kernel is launched one by
one. A step of prompt-only interventions replays the base model's graph.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reft_server.engine.batch import Batch
from reft_server.engine.edit_plan import EditPlan
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.paged_cache import PagedSlot, PagePool

from .attention import Varlen
from .edit_tables import NUM_FIELDS, EditTables, RowEdits, build_edit_tables
from .graph_capture import CudaCapture
from .triton_kernels import TritonStep

logger = logging.getLogger(__name__)

Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes a function of no arguments; gives what runs it again, and the tensor that holds its result each time."""


def buckets(max_num_seqs: int) -> list[int]:
    """Batch sizes that have a graph: 1, 2, 4, 8, then every 16 up to 256, every 64 beyond, and the largest."""
    sizes = [1, 2, 4, 8, *range(16, 257, 16), *range(320, max_num_seqs, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


@dataclass(frozen=True)
class _Graph:
    step: TritonStep
    replay: Callable[[], None]
    logits: Tensor  # [bucket, vocab_size], of the last replay


class GraphedModel:
    """A packed model whose decode steps are replayed where they can be; any other step runs as it is.

    Args:
        model: with `TritonKernels`.
        max_num_seqs: the largest decode step.
        max_model_len: tokens that a block table has room for.
        capture: records a graph; another one in tests, where there is no GPU.
    """

    supports_shared_prefixes = False

    def __init__(
        self, model: PackedModel, *, max_num_seqs: int, max_model_len: int, capture: Capture | None = None
    ) -> None:
        self.packed = model
        self.kv_layout = model.kv_layout
        self._num_layers = len(model.kv_layout.layers)
        self._buckets = buckets(max_num_seqs)
        self._max_pages = -(-max_model_len // 16)
        self._capture = capture or CudaCapture(model.kv_layout.device)
        # By pool: graphs read its memory, and go with it.
        self._graphs: weakref.WeakKeyDictionary[PagePool, dict[tuple[int, bool], _Graph]] = weakref.WeakKeyDictionary()
        self._edits: tuple[EditPlan, int, EditTables] | None = None  # of the last plan
        self.num_replays = 0

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`, valid until the next step."""
        tables = self._edit_tables(batch) if self._is_decode(batch) else None
        if tables is None:
            return self.packed.forward(batch)
        graph = self._graph(_pool(batch), self.bucket(batch.num_tokens), has_edits=bool(tables.sites))
        self._fill(graph.step, batch)
        if tables.sites:
            self._fill_edits(graph.step, tables, batch)
        graph.replay()
        self.num_replays += 1
        return graph.logits[: batch.num_tokens]

    def bucket(self, num_rows: int) -> int:
        """The smallest graph for so many rows."""
        return next(size for size in self._buckets if size >= num_rows)

    def _is_decode(self, batch: Batch) -> bool:
        """Every row is one sequence's next token and is sampled, and all of them fit a graph."""
        is_single = all(chunk.num_tokens == 1 for chunk in batch.chunks)
        is_sampled = batch.sampled_rows == list(range(batch.num_tokens))
        return is_single and is_sampled and batch.num_tokens <= self._buckets[-1]

    def _edit_tables(self, batch: Batch) -> EditTables | None:
        """The step's edits where a graph can run them: one for a row behind each layer. None where it can't."""
        if not batch.edits.is_plain:
            return None
        plan, num_rows = batch.edits, batch.num_tokens
        if self._edits is not None and self._edits[0] is plan and self._edits[1] == num_rows:
            tables = self._edits[2]
        else:
            tables = build_edit_tables(plan.groups, num_rows, self.kv_layout.device, with_tiles=False)
            self._edits = (plan, num_rows, tables)
        is_simple = all(
            component == "block_output" and tables.sites.get((layer, component)) is not None
            for layer, component in batch.edits.groups
        )
        is_single = all(isinstance(one, RowEdits) and one.num_levels == 1 for one in tables.sites.values())
        return tables if is_simple and is_single else None

    def _graph(self, pool: PagePool, bucket: int, *, has_edits: bool) -> _Graph:
        graphs = self._graphs.setdefault(pool, {})
        key = (bucket, has_edits)
        if key not in graphs:
            step = self._static_step(pool, bucket, has_edits=has_edits)
            replay, logits = self._capture(lambda: self.packed.run(step))
            # The step goes without its pool: what a dictionary's value holds on to keeps its key alive.
            graphs[key] = _Graph(replace(step, pool=weakref.proxy(pool)), replay, logits)
            logger.info("decode graph captured batch_size=%d has_edits=%s", bucket, has_edits)
        return graphs[key]

    def _static_step(self, pool: PagePool, bucket: int, *, has_edits: bool) -> TritonStep:
        """Buffers of a graph: rows of padding write nowhere, have no keys and no edits."""
        device = self.kv_layout.device
        zeros = torch.zeros(bucket, dtype=torch.int64, device=device)
        edits = None
        if has_edits:
            num_entries = self._num_layers * bucket
            edits = EditTables(
                table=torch.zeros(num_entries, NUM_FIELDS, dtype=torch.int64, device=device),
                index=torch.full((self._num_layers, bucket), -1, dtype=torch.int32, device=device),
                sites={(layer, "block_output"): RowEdits(layer, 1) for layer in range(self._num_layers)},
                keep=(),
            )
        return TritonStep(
            input_ids=zeros,
            positions=zeros.clone(),
            sampled=torch.arange(bucket, device=device),
            slots=torch.full_like(zeros, -1),
            pool=pool,
            varlen=Varlen(
                query_starts=torch.arange(bucket + 1, dtype=torch.int32, device=device),
                lengths=torch.zeros(bucket, dtype=torch.int32, device=device),
                tables=torch.zeros(bucket, self._max_pages, dtype=torch.int32, device=device),
                num_decode=bucket,
            ),
            edits=edits,
        )

    @staticmethod
    def _fill(step: TritonStep, batch: Batch) -> None:
        num_rows = batch.num_tokens
        num_padding = step.varlen.num_decode - num_rows
        slots = [_paged(chunk.sequence.slot) for chunk in batch.chunks]
        starts = [chunk.start for chunk in batch.chunks]
        places = [slot.place(start) for slot, start in zip(slots, starts, strict=True)]
        step.input_ids.copy_(torch.tensor(batch.token_ids + [0] * num_padding))
        step.positions.copy_(torch.tensor(starts + [0] * num_padding))
        step.slots.copy_(torch.tensor(places + [-1] * num_padding))
        lengths = [start + 1 for start in starts]
        step.varlen.lengths.copy_(torch.tensor(lengths + [0] * num_padding, dtype=torch.int32))
        width = max(len(slot.pages) for slot in slots)
        tables = [slot.pages + [0] * (width - len(slot.pages)) for slot in slots]
        step.varlen.tables[:num_rows, :width].copy_(torch.tensor(tables, dtype=torch.int32))

    def _fill_edits(self, step: TritonStep, tables: EditTables, batch: Batch) -> None:
        edits = step.edits
        assert edits is not None  # a graph with edits
        edits.index.fill_(-1)
        edits.table[: tables.table.shape[0]].copy_(tables.table)
        for (layer, _), found in tables.sites.items():
            assert isinstance(found, RowEdits)  # checked by `_edit_tables`
            edits.index[layer, : batch.num_tokens].copy_(tables.index[found.first])


def _pool(batch: Batch) -> PagePool:
    return _paged(batch.chunks[0].sequence.slot).pool


def _paged(slot: object) -> PagedSlot:
    assert isinstance(slot, PagedSlot)  # of this path's layout
    return slot
