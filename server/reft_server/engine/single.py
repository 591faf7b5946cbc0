"""One sequence alone through a model path, outside the scheduler: for start-up checks and self-tests."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from reft_interventions.folded import FoldedSet

from .batch import Batch, build_batch
from .capture import RowCapture
from .edit_plan import EditPlan, EditPlanner
from .kv_memory import KVLayout
from .launched import LaunchedStep
from .paged_cache import make_kv_cache
from .scheduler import ScheduledChunk
from .sequence import Sequence
from .stream import NullStream
from .types import GenerationRequest, SamplingParams


class Model(Protocol):
    """A model path: a frozen decoder that runs flat batches."""

    kv_layout: KVLayout
    supports_shared_prefixes: bool

    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`; K and V land in the cache."""
        ...


@runtime_checkable
class LaunchingModel(Model, Protocol):
    """A model path that can go on with a step while the one before is not read yet."""

    def launch(self, batch: Batch, previous: LaunchedStep | None) -> LaunchedStep:
        """Start a step whose sequences don't need the host, behind the one in flight.

        Args:
            previous: whose tokens are the ones that this batch's sequences expect.
        """
        ...


def run_alone(
    model: Model,
    token_ids: SequenceOf[int],
    *,
    prompt_length: int | None = None,
    interventions: tuple[FoldedSet, ...] = (),
    captures: tuple[RowCapture, ...] = (),
    chunk_sizes: SequenceOf[int] | None = None,
    wrap_edits: Callable[[EditPlan], EditPlan] = lambda plan: plan,
) -> Tensor:
    """Logits after each chunk, `[num_chunks, vocab_size]`; none where rows are captured.

    Args:
        prompt_length: how many of `token_ids` are the prompt; None = all. Decides which positions are edited.
        chunk_sizes: how the tokens are cut into steps; None = one step.
        wrap_edits: replaces a step's edits, for instance by ones that are observed.
    """
    num_tokens = len(token_ids)
    cache = make_kv_cache(
        model.kv_layout,
        budget_bytes=model.kv_layout.bytes_per_token * max(2 * num_tokens, 256),
        max_rows=1,
        max_tokens=num_tokens,
    )
    request = GenerationRequest(
        request_id="alone",
        prompt_token_ids=tuple(token_ids[:prompt_length]),
        sampling=SamplingParams(max_tokens=1, temperature=0.0),
        interventions=interventions,
        captures=captures,
    )
    sequence = Sequence(request, NullStream(), len(model.kv_layout.layers))
    sequence.slot = cache.allocate(num_tokens)
    planner = EditPlanner.for_layout(model.kv_layout)
    logits = []
    start = 0
    for size in chunk_sizes or (num_tokens,):
        sequence.token_ids = list(token_ids[: start + size])
        batch = build_batch([ScheduledChunk(sequence, start, size)], model.kv_layout.device, planner)
        # A copy: the next step may leave its own logits in their place.
        logits.append(model.forward(replace(batch, edits=wrap_edits(batch.edits))).clone())
        start += size
    return torch.cat(logits)
