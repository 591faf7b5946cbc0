"""What a decode graph reads, after each of several steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from reft_server.engine.batch import Batch
from reft_server.engine.cuda.static_inputs import StaticInputs
from reft_server.engine.edit_plan import NO_EDITS
from reft_server.engine.kv_memory import KVLayout
from reft_server.engine.paged_cache import PagedKVCache, PagedSlot
from reft_server.engine.scheduler import ScheduledChunk

CPU = torch.device("cpu")


def batch(slots: list[PagedSlot], starts: list[int]) -> Batch:
    sequences: list[Any] = [SimpleNamespace(slot=slot) for slot in slots]
    chunks = tuple(ScheduledChunk(one, start, 1) for one, start in zip(sequences, starts, strict=True))
    return Batch(chunks, [7] * len(slots), list(range(len(slots))), tuple(sequences), (), NO_EDITS, CPU)


def test_block_tables_follow_slots_that_grow_come_and_go() -> None:
    cache = PagedKVCache(KVLayout(((1, 2, 2),), torch.float32, CPU, is_paged=True), budget_bytes=1 << 16, max_tokens=64)
    inputs = StaticInputs(4, 4, 1, CPU)
    tables = inputs.step(4, cache.pool, has_edits=False).varlen.tables
    a, b, c = (slot for slot in (cache.allocate(16), cache.allocate(32), cache.allocate(16)) if slot is not None)

    def check(slots: list[PagedSlot], starts: list[int]) -> None:
        inputs.fill(4, batch(slots, starts), [-1] * len(slots))
        for row, slot in enumerate(slots):
            assert tables[row, : len(slot.pages)].tolist() == slot.pages

    check([a, b, c], [3, 20, 0])
    cache.grow(c, 48, 16)
    check([a, b, c], [4, 21, 16])  # one row alone has changed
    cache.free(a)
    check([b, c], [22, 17])
    d = cache.allocate(16)  # where `a` was
    assert d is not None
    check([b, c, d], [23, 18, 0])
    check([d, c, b], [1, 19, 24])
