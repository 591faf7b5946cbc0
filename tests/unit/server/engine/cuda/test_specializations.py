"""What Triton would compile while requests wait: nothing that depends on how many rows or pages a step has."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction, create_function_from_signature

from reft_server.engine.batch import build_batch
from reft_server.engine.cuda import DEFAULT_TILE, TritonKernels, attention_launch
from reft_server.engine.cuda.products import few_rows
from reft_server.engine.edit_plan import EditPlanner
from reft_server.engine.kernels import AttentionShape
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.paged_cache import PagedKVCache
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams

BACKEND = make_backend(GPUTarget("cuda", 90, 32))


class Launches:
    """Notes, instead of launching, what a kernel would be compiled for: `variants` by kernel and its constants."""

    def __init__(self) -> None:
        self.variants: dict[tuple[str, str], set[str]] = {}
        self._binders: dict[str, tuple[JITFunction[Any], Any]] = {}

    def note(self, kernel: InterpretedFunction, *args: Any, **kwargs: Any) -> None:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("grid", "warmup")}
        name = kernel.__name__
        if name not in self._binders:
            options = {key: kernel.kwargs[key] for key in ("do_not_specialize", "do_not_specialize_on_alignment")}
            compiled = JITFunction(kernel.fn, **options)
            bind = create_function_from_signature(compiled.signature, compiled.params, BACKEND)
            self._binders[name] = compiled, bind
        compiled, bind = self._binders[name]
        _, found, options = bind(*args, **kwargs)
        constants = [value for (_, value), param in zip(found, compiled.params, strict=True) if param.is_constexpr]
        self.variants.setdefault((name, str((constants, options))), set()).add(str(found))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    noted = Launches()
    monkeypatch.setattr(InterpretedFunction, "run", lambda kernel, *args, **kwargs: noted.note(kernel, *args, **kwargs))
    return noted


def batches() -> Iterator[tuple[list[int], list[int]]]:
    """Positions of rows that decode, and lengths of prompts."""
    for num_rows, position in itertools.product((1, 2, 15, 16, 17), (5, 20, 255)):
        yield [position] * num_rows, []
        yield [position] * (num_rows - 1), [3, 40]


def test_steps_of_any_size_need_the_same_kernels(launches: Launches, tiny_model: Any, make_set: Any) -> None:
    tiny = tiny_model("llama", num_hidden_layers=2)
    model = PackedModel(copy.deepcopy(tiny).bfloat16(), 256, TritonKernels)
    sets = [make_set(tiny, {"positions": "all", "layer": 0}, {"positions": "all", "layer": 1}).fold()]
    cache = PagedKVCache(model.kv_layout, budget_bytes=1 << 22, max_tokens=256)
    planner = EditPlanner.for_layout(model.kv_layout)
    for decoding, prompts in batches():
        chunks = []
        for start, size in [*((one, 1) for one in decoding), *((0, one) for one in prompts)]:
            request = GenerationRequest("test", (1,) * (start + size), SamplingParams(max_tokens=1), tuple(sets))
            sequence = Sequence(request, NullStream(), 2)
            sequence.slot = cache.allocate(start + size)
            chunks.append(ScheduledChunk(sequence, start, size))
        model.forward(build_batch(chunks, torch.device("cpu"), planner))
        for chunk in chunks:
            assert chunk.sequence.slot is not None
            cache.free(chunk.sequence.slot)
    names = {name for name, _ in launches.variants}
    assert names >= {
        "add_edit_norm_kernel",
        "edit_tiles_kernel",
        "decode_kernel",
        "prefill_kernel",
        "rope_write_kernel",
    }
    assert [kernel for kernel, found in launches.variants.items() if len(found) > 1] == []


def test_any_number_of_splits_needs_the_same_kernels(launches: Launches) -> None:
    shape = AttentionShape(4, 2, 16, 0.25)
    pages = attention_launch.Pages(torch.zeros(2, 2, 16, 16), torch.zeros(2, 2, 16, 16))
    query, lengths = torch.zeros(3, 4, 16), torch.ones(3, dtype=torch.int32)
    tables = torch.zeros(3, 2, dtype=torch.int32)
    for num_splits in (2, 4, 8, 16, 32):
        attention_launch.decode(query, pages, tables, lengths, shape, None, query.clone(), num_splits)
    assert sorted(name for name, _ in launches.variants) == ["decode_kernel", "merge_kernel"]
    assert [len(found) for found in launches.variants.values()] == [1, 1]


def test_products_of_any_number_of_rows_need_the_same_kernel(launches: Launches) -> None:
    for num_rows in range(1, 9):
        few_rows(torch.zeros(num_rows, 32), torch.zeros(48, 32), None, DEFAULT_TILE)
    assert [len(found) for found in launches.variants.values()] == [1]
