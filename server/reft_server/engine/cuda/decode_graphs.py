"""Decode steps replayed from CUDA graphs: one per batch-size bucket, and a second one with the edits inside.

A graph reads static buffers. A step fills them, replays, and takes its rows of the logits: no kernel is launched one by
one. A step of prompt-only interventions replays the base model's graph. A step can be launched without waiting for the
one before: its tokens are chosen on the device, and the next step takes them there.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reft_server.engine.batch import Batch
from reft_server.engine.edit_plan import EditPlan
from reft_server.engine.kv_memory import KVAllocator
from reft_server.engine.launched import LaunchedStep
from reft_server.engine.memory import to_device
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.paged_cache import PagedKVCache, PagePool
from reft_server.engine.sequence import EXPECTED

from .device_sampler import DeviceSampler
from .edit_tables import EditTables, RowEdits, build_edit_tables
from .graph_capture import Capture, CudaCapture, smallest_size
from .products import replay_timer
from .static_inputs import StaticInputs, fed, paged
from .triton_kernels import TritonKernels, TritonStep

logger = logging.getLogger(__name__)

_HOST = torch.device("cpu")


def buckets(max_num_seqs: int) -> list[int]:
    """Batch sizes that have a graph: 1, 2, 4, 8, then every 16 up to 256, every 64 beyond, and the largest."""
    sizes = [1, 2, 4, 8, *range(16, 257, 16), *range(320, max_num_seqs, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


@dataclass(frozen=True)
class _Graph:
    step: TritonStep  # its tensors are alive as long as the graph is
    replay: Callable[[], None]


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
        self._buckets = buckets(max_num_seqs)
        self._capture = capture or CudaCapture(model.kv_layout.device)
        device, num_layers = model.kv_layout.device, len(model.kv_layout.layers)
        self._inputs = StaticInputs(self._buckets[-1], -(-max_model_len // 16), num_layers, device)
        self._sampler = DeviceSampler(self._buckets, model.vocab_size, device, self._capture)
        # By pool: graphs read its memory, and go with it.
        self._graphs: weakref.WeakKeyDictionary[PagePool, dict[tuple[int, bool], _Graph]] = weakref.WeakKeyDictionary()
        self._edits: tuple[EditPlan, int, EditTables] | None = None  # of the last plan
        self.num_replays = 0

    def choose_products(self) -> None:
        """Time the products of few rows on this device, before any graph holds them."""
        assert isinstance(self.packed.kernels, TritonKernels)
        self.packed.kernels.products.choose(replay_timer(self._capture))

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`, valid until the next step."""
        if self._replay(batch, None):
            return self._sampler.logits[: batch.num_tokens]
        return self._run(batch, None)

    @torch.inference_mode()
    def launch(self, batch: Batch, previous: LaunchedStep | None) -> LaunchedStep:
        """Start a step behind `previous`, whose tokens it takes on the device, and the choice of its own tokens."""
        sources = _sources(batch, previous)
        uniforms = {one: one.random.random() for one in batch.sampled_sequences if one.sampling.temperature > 0}
        try:
            if not self._replay(batch, sources):
                logits = self._run(batch, sources)
                self._sampler.logits[: len(logits)].copy_(logits)
            return self._sampler.launch(batch, uniforms)
        except Exception:
            for sequence, number in uniforms.items():  # the step is run again
                sequence.random.give_back(number)
            raise

    @torch.inference_mode()
    def prepare(self, cache: KVAllocator) -> None:
        """Record every graph over a cache's memory, so that no request waits for one.

        The largest come first: the others use their memory again.
        """
        assert isinstance(cache, PagedKVCache)  # made for this path's layout
        started = time.perf_counter()
        for size in reversed(self._buckets):
            for has_edits in (False, True):
                self._graph(cache.pool, size, has_edits=has_edits)
            self._sampler.prepare(size)
        logger.info("decode graphs recorded sizes=%s seconds=%.1f", self._buckets, time.perf_counter() - started)

    def _run(self, batch: Batch, sources: list[int] | None) -> Tensor:
        """Run a step as it is; `sources` as `_sources` gives them. Logits of the sampled rows."""
        step = self.packed.begin(batch)
        if sources is not None:
            rows = to_device(sources, torch.int64, self.kv_layout.device)
            step = replace(step, input_ids=fed(step.input_ids, rows, self._sampler.tokens))
        return self.packed.run(step)[: len(batch.sampled_rows)]

    def _replay(self, batch: Batch, sources: list[int] | None) -> bool:
        """Run a step by a graph, which leaves its logits with the sampler; False where no graph can."""
        tables = self._edit_tables(batch) if self._is_decode(batch) else None
        if tables is None:
            return False
        size = smallest_size(self._buckets, batch.num_tokens)
        graph = self._graph(paged(batch.chunks[0].sequence.slot).pool, size, has_edits=bool(tables.sites))
        self._inputs.fill(size, batch, sources or [-1] * batch.num_tokens)
        if tables.sites:
            self._inputs.fill_edits(size, tables)
        graph.replay()
        self.num_replays += 1
        return True

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
            tables = build_edit_tables(plan.groups, num_rows, _HOST, with_tiles=False)
            self._edits = (plan, num_rows, tables)
        is_simple = all(
            component == "block_output" and tables.sites.get((layer, component)) is not None
            for layer, component in batch.edits.groups
        )
        is_single = all(isinstance(one, RowEdits) and one.num_levels == 1 for one in tables.sites.values())
        return tables if is_simple and is_single else None

    def _graph(self, pool: PagePool, size: int, *, has_edits: bool) -> _Graph:
        graphs = self._graphs.setdefault(pool, {})
        key = (size, has_edits)
        if key not in graphs:
            step = self._inputs.step(size, pool, has_edits=has_edits)
            inputs, sampler, packed = self._inputs, self._sampler, self.packed

            def run() -> Tensor:
                inputs.begin(size, sampler.tokens)
                return sampler.logits[:size].copy_(packed.run(step))

            inputs.blank(size)
            replay, _ = self._capture(run)
            # The step goes without its pool: what a dictionary's value holds on to keeps its key alive.
            graphs[key] = _Graph(replace(step, pool=weakref.proxy(pool)), replay)
            logger.debug("decode graph recorded batch_size=%d has_edits=%s", size, has_edits)
        return graphs[key]


def _sources(batch: Batch, previous: LaunchedStep | None) -> list[int] | None:
    """Of each row, the row of the step before that chooses its token, -1 where it is known; None = all are."""
    if EXPECTED not in batch.token_ids:
        return None
    assert previous is not None  # whose tokens are expected
    sources, row = [-1] * batch.num_tokens, -1
    for sequence, _, num_tokens in batch.chunks:
        row += num_tokens
        if batch.token_ids[row] == EXPECTED:
            sources[row] = previous.rows[sequence]
    return sources
