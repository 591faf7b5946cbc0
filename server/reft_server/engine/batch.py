"""A step's chunks laid out as flat tensors: what a model path needs for one forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .edit_plan import EditPlan, EditPlanner
from .kv_cache import ExtentSlot, Slab
from .kv_memory import KVSlot
from .memory import to_device
from .scheduler import ScheduledChunk
from .sequence import Sequence


@dataclass(frozen=True)
class DecodeGroup:
    """Sequences of one slab that compute one token each; their tokens are `[start, end)` of the flat batch."""

    slab: Slab
    start: int
    end: int
    rows: Tensor  # [num_sequences], int64: rows of the slab
    positions: Tensor  # [num_sequences], int64: where this step's K and V go
    num_view_rows: int
    max_length: int
    lengths: Tensor  # [num_view_rows], int64: keys to attend to; 1 for rows that are not in this group

    @property
    def is_dense(self) -> bool:
        """The group is exactly the first rows of the slab, in order: queries need no scatter."""
        return self.end - self.start == self.num_view_rows

    def mask(self, sliding_window: int | None, dtype: torch.dtype) -> Tensor | None:
        """Additive mask `[num_view_rows, 1, 1, max_length]`; None when every key is visible to every row."""
        key = (sliding_window, dtype)
        if key not in self._mask_cache:
            index = torch.arange(self.max_length, device=self.lengths.device)
            is_hidden = index >= self.lengths[:, None]
            if sliding_window is not None:
                is_hidden |= index < self.lengths[:, None] - sliding_window
            blank = torch.zeros(is_hidden.shape, dtype=dtype, device=is_hidden.device)
            mask = blank.masked_fill_(is_hidden, float("-inf"))[:, None, None]
            self._mask_cache[key] = mask if bool(is_hidden.any()) else None
        return self._mask_cache[key]

    @cached_property
    def _mask_cache(self) -> dict[tuple[int | None, torch.dtype], Tensor | None]:
        return {}


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens `[start, end)` of the flat batch: positions `[first, first + end - start)` of one sequence."""

    slab: Slab
    row: int
    start: int
    end: int
    first: int

    @property
    def last(self) -> int:
        return self.first + self.end - self.start

    def mask(self, sliding_window: int | None, device: torch.device) -> Tensor | None:
        """Boolean mask `[num_tokens, last]`, True = visible; None when plain causal attention is meant."""
        window = sliding_window if sliding_window is not None and sliding_window < self.last else None
        if self.first == 0 and window is None:
            return None
        if window not in self._mask_cache:
            keys = torch.arange(self.last, device=device)
            queries = torch.arange(self.first, self.last, device=device)[:, None]
            visible = keys <= queries
            if window is not None:
                visible &= keys > queries - window
            self._mask_cache[window] = visible
        return self._mask_cache[window]

    @cached_property
    def _mask_cache(self) -> dict[int | None, Tensor]:
        return {}


@dataclass(frozen=True)
class Batch:
    """One step: token ids laid out flat, where their K and V go, which rows are sampled and which edited.

    Tokens of decoding sequences come first, grouped by slab and in the order of its rows; then prompts' chunks. The
    tensors and the groups are made when they are asked for: the native path needs none of them.
    """

    chunks: tuple[ScheduledChunk, ...]
    token_ids: list[int]
    sampled_rows: list[int]  # rows of the flat batch whose logits are needed: to sample, then to score prompts
    sampled_sequences: tuple[Sequence, ...]
    scored: tuple[tuple[Sequence, int], ...]  # whose the rows after the sampled ones are, and how many
    edits: EditPlan
    device: torch.device

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @cached_property
    def input_ids(self) -> Tensor:
        """`[num_tokens]`, int64."""
        return to_device(self.token_ids, torch.int64, self.device)

    @cached_property
    def positions(self) -> Tensor:
        """`[num_tokens]`, int64."""
        ranges = (range(chunk.start, chunk.start + chunk.num_tokens) for chunk in self.chunks)
        return to_device([one for positions in ranges for one in positions], torch.int64, self.device)

    @cached_property
    def sampled_index(self) -> Tensor:
        """`sampled_rows` as `[num_sampled]`, int64."""
        return to_device(self.sampled_rows, torch.int64, self.device)

    @cached_property
    def decode_groups(self) -> tuple[DecodeGroup, ...]:
        """Chunks of one token, by slab."""
        groups: dict[int, list[tuple[int, ScheduledChunk]]] = {}
        for row, chunk in self._placed_chunks:
            if chunk.num_tokens == 1:
                groups.setdefault(id(_extent(chunk).slab), []).append((row, chunk))
        return tuple(_decode_group(members, self.device) for members in groups.values())

    @cached_property
    def prefill_chunks(self) -> tuple[PrefillChunk, ...]:
        """Chunks of several tokens."""
        chunks = []
        for row, chunk in self._placed_chunks:
            if chunk.num_tokens > 1:
                slot = _extent(chunk)
                chunks.append(PrefillChunk(slot.slab, slot.row, row, row + chunk.num_tokens, chunk.start))
        return tuple(chunks)

    @property
    def _placed_chunks(self) -> Iterator[tuple[int, ScheduledChunk]]:
        """Each chunk with the flat row of its first token."""
        row = 0
        for chunk in self.chunks:
            yield row, chunk
            row += chunk.num_tokens


def build_batch(chunks: SequenceOf[ScheduledChunk], device: torch.device, planner: EditPlanner) -> Batch:
    """Lay chunks out as one flat batch. Every sequence has a slot."""
    ordered = tuple(sorted(chunks, key=_layout_key))
    token_ids: list[int] = []
    sampled_rows: list[int] = []
    sampled: list[Sequence] = []
    scored_rows: list[int] = []
    scored: list[tuple[Sequence, int]] = []
    for chunk in ordered:
        sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.num_tokens
        if sequence.prompt_scores is not None and (positions := sequence.prompt_scores.positions(start, end)):
            scored_rows += [len(token_ids) + position - start for position in positions]
            scored.append((sequence, len(positions)))
        token_ids += sequence.token_ids[start:end]
        if chunk.is_sampled:
            sampled_rows.append(len(token_ids) - 1)
            sampled.append(sequence)
    rows = sampled_rows + scored_rows
    return Batch(ordered, token_ids, rows, tuple(sampled), tuple(scored), planner.plan(ordered), device)


def _layout_key(chunk: ScheduledChunk) -> tuple[bool, int, int]:
    slot = chunk.sequence.slot
    assert slot is not None  # the scheduler gave it one
    return chunk.num_tokens > 1, *slot.order


def _extent(chunk: ScheduledChunk) -> ExtentSlot:
    """Where a chunk's K and V are, on the paths that keep them in extents."""
    slot: KVSlot | None = chunk.sequence.slot
    assert isinstance(slot, ExtentSlot)
    return slot


def _decode_group(members: list[tuple[int, ScheduledChunk]], device: torch.device) -> DecodeGroup:
    slots = [_extent(chunk) for _, chunk in members]
    rows = [slot.row for slot in slots]
    slab = slots[0].slab
    starts = [chunk.start for _, chunk in members]
    num_view_rows = max(rows) + 1
    lengths = [1] * num_view_rows
    for row, start in zip(rows, starts, strict=True):
        lengths[row] = start + 1
    first = members[0][0]
    return DecodeGroup(
        slab=slab,
        start=first,
        end=first + len(members),
        rows=torch.tensor(rows, device=device),
        positions=torch.tensor(starts, device=device),
        num_view_rows=num_view_rows,
        max_length=max(lengths),
        lengths=torch.tensor(lengths, device=device),
    )
