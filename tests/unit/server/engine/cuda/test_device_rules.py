"""What a GPU would refuse, found without one: tensors of the host among the device's, and waiting during capture."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reft_interventions.errors import InterventionSelfTestError
from reft_interventions.folded import FoldedSet
from reft_server.engine import EngineSettings, build_engine
from reft_server.engine.batch import build_batch
from reft_server.engine.capture import RowCapture
from reft_server.engine.cuda import DEFAULT_TILE, GraphedModel, Products, TritonKernels, launch
from reft_server.engine.edit_plan import EditPlanner
from reft_server.engine.generic_model import GenericModel
from reft_server.engine.kernels import AttentionShape, TorchKernels
from reft_server.engine.kv_memory import KVAllocator
from reft_server.engine.logprobs import pick_logprobs
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.paged_cache import make_kv_cache
from reft_server.engine.sampler import sample
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.self_test import run_self_test
from reft_server.engine.sequence import Sequence
from reft_server.engine.single import Model
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams
from tests.pretend_device import DEVICE, DeviceError, pretend_device


def capture(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A `Capture` that runs a function under the rules of one, and replays nothing."""
    with pretend_device(is_capturing=True):
        return (lambda: None), function()


def graphed(model: Any) -> GraphedModel:
    """With our own products: of up to 8 rows, as all of this file's steps have that are recorded."""

    def kernels(shape: AttentionShape, rotary: Tensor) -> TritonKernels:
        return TritonKernels(shape, rotary, products=Products(DEFAULT_TILE))

    return GraphedModel(PackedModel(model, 64, kernels), max_num_seqs=8, max_model_len=64, capture=capture)


PATHS: dict[str, Callable[[Any], Model]] = {
    "graphed": graphed,
    "triton": lambda model: PackedModel(model, 64, TritonKernels),
    "torch": lambda model: PackedModel(model, 64, TorchKernels),
    "generic": GenericModel,
}


def on_device(tiny_model: Any, arch: str, path: str) -> Model:
    model = copy.deepcopy(tiny_model(arch, num_hidden_layers=2)).bfloat16().to(DEVICE)
    return PATHS[path](model)


def sequence(
    model: Model,
    cache: KVAllocator,
    num_tokens: int,
    *sets: FoldedSet,
    captures: tuple[RowCapture, ...] = (),
    **params: Any,
) -> Sequence:
    tokens = tuple(range(1, num_tokens + 1))
    request = GenerationRequest("test", tokens, SamplingParams(max_tokens=8, **params), sets, captures=captures)
    made = Sequence(request, NullStream(), len(model.kv_layout.layers), frozenset({2}))
    made.slot = cache.allocate(40)
    return made


def step(model: Model, planner: EditPlanner, *chunks: ScheduledChunk) -> Tensor:
    batch = build_batch(chunks, DEVICE, planner)
    logits = model.forward(batch)
    sample(logits[: len(batch.sampled_sequences)], batch.sampled_sequences)
    return logits


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("arch", ["mistral", "qwen3"])
def test_steps_keep_host_and_device_apart(arch: str, path: str, tiny_model: Any, make_set: Any) -> None:
    """Prompts in chunks, decoding in graphs and without, edits of every kind, sources noted, all ways to sample."""
    tiny = tiny_model(arch, num_hidden_layers=2)
    sets = [
        make_set(tiny, *edits, seed=1).fold().to(DEVICE)
        for edits in (
            [{"positions": "all", "layer": layer} for layer in (0, 1)],
            [{"positions": "f1+l1", "layer": 0, "low_rank_dimension": 2}],
            [{"formula": "scale_shift", "positions": "all", "layer": 1}],
            [{"component": "query_output", "positions": "all", "layer": 1}],
        )
    ]
    with pretend_device():
        model = on_device(tiny_model, arch, path)
        cache = make_kv_cache(model.kv_layout, budget_bytes=1 << 20, max_rows=8, max_tokens=64)
        planner = EditPlanner.for_layout(model.kv_layout)
        settings = [
            {"temperature": 0.0, "num_logprobs": 2, "logit_bias": ((1, 2.0),)},
            {"temperature": 1.0, "min_tokens": 3, "repetition_penalty": 1.5, "presence_penalty": 0.5},
            {"temperature": 0.7, "top_k": 4, "min_p": 0.1},
            {"temperature": 1.0, "top_p": 0.5, "frequency_penalty": 0.5},
        ]
        running = [
            sequence(model, cache, 9 + i, one, **params)
            for i, (one, params) in enumerate(zip(sets, settings, strict=True))
        ]
        noted = RowCapture((1, "block_output"), (3, 5))
        source = sequence(model, cache, 7, captures=(noted,), temperature=0.0)
        step(model, planner, ScheduledChunk(running[0], 0, 4), ScheduledChunk(source, 0, 7))
        step(
            model,
            planner,
            ScheduledChunk(running[0], 4, 5),
            *(ScheduledChunk(s, 0, s.prompt_length) for s in running[1:]),
        )
        for one in running:
            one.token_ids.append(3)
        for members in (running, running[:1], running[1:2]):
            logits = step(model, planner, *(ScheduledChunk(s, len(s.token_ids) - 1, 1) for s in members))
        assert logits.device == DEVICE
        assert noted.rows.device.type == "cpu"
        slot = running[0].slot
        assert slot is not None
        assert cache.grow(slot, 60, 10) is not None


def test_steps_that_are_launched_ahead_keep_host_and_device_apart(tiny_model: Any, make_set: Any) -> None:
    """A prompt beside a row that decodes, then both in a graph, their tokens still on the device."""
    tiny = tiny_model("llama", num_hidden_layers=2)
    everywhere = make_set(tiny, {"positions": "all", "layer": 1}).fold().to(DEVICE)
    with pretend_device():
        model = graphed(copy.deepcopy(tiny).bfloat16().to(DEVICE))
        cache = make_kv_cache(model.kv_layout, budget_bytes=1 << 20, max_rows=8, max_tokens=64)
        model.prepare(cache)
        planner = EditPlanner.for_layout(model.kv_layout)
        members = [
            sequence(model, cache, 5, temperature=0.7, top_p=0.9),
            sequence(model, cache, 3, everywhere, temperature=1.0),
        ]
        launched = None
        for sizes in ((5, 3), (1, 1), (1, 1)):
            chunks = [
                ScheduledChunk(one, len(one.token_ids) - size, size) for one, size in zip(members, sizes, strict=True)
            ]
            following = model.launch(build_batch(chunks, DEVICE, planner), launched)
            if launched is not None:
                for one, token in launched.read():
                    one.receive_token(token.token_id)
            for one in members:
                one.expect_token()
            launched = following
    assert model.num_replays == 2


def test_reading_logprobs_waits_as_often_for_many_rows_as_for_one() -> None:
    counts = []
    for num_rows in (1, 7):
        with pretend_device() as device:
            pick_logprobs(torch.zeros(num_rows, 32, device=DEVICE), [1] * num_rows, [3] * num_rows)
        counts.append(device.num_reads)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("positions", ["all", "f1+l1"])
@pytest.mark.parametrize("formula", ["loreft", "dii", "scale_shift"])
def test_self_tests_keep_host_and_device_apart(formula: str, positions: str, tiny_model: Any, make_set: Any) -> None:
    """Values are zeros here, so a set seems to change nothing; sources go to the host and come back."""
    tested = make_set(tiny_model("llama", num_hidden_layers=2), {"formula": formula, "positions": positions}).fold()
    with pretend_device():
        model = on_device(tiny_model, "llama", "triton")
        with pytest.raises(InterventionSelfTestError, match="changes nothing"):
            run_self_test(model, tested, vocab_size=128, max_model_len=64)


@pytest.mark.parametrize("settings", [{"kernels": "triton"}, {"kernels": "torch"}, {"model_path": "generic"}])
def test_an_engine_is_built_from_a_model_on_a_device(settings: dict[str, Any], tiny_model: Any) -> None:
    """The fingerprint, the rotary table, packed weights and the check against transformers' own logits."""
    with pretend_device():
        model = copy.deepcopy(tiny_model("llama", num_hidden_layers=2)).bfloat16().to(DEVICE)
        engine = build_engine(model, "tiny", EngineSettings(kv_cache_bytes=1 << 20, prefix_cache_bytes=0, **settings))
    assert engine.model_info.device == str(DEVICE)


@pytest.mark.parametrize(
    "mistake",
    [
        lambda rows: rows + torch.ones(2),
        lambda rows: torch.ones(2) @ rows,
        lambda rows: rows.index_select(0, torch.tensor([0])),
        lambda rows: launch.silu_mul(torch.ones(2, 2 * len(rows))),
    ],
)
def test_tensors_of_the_host_are_refused_among_the_devices(mistake: Callable[[Tensor], Any]) -> None:
    with pretend_device(), pytest.raises(DeviceError):
        mistake(torch.ones(2, device=DEVICE))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda rows: rows.sum().item(),
        lambda rows: rows.cpu(),
        lambda rows: rows.copy_(torch.ones(2)),
        lambda rows: rows + torch.tensor(1.0),
        lambda rows: rows[rows > 0],
        lambda rows: rows[torch.tensor([0])],
    ],
)
def test_what_a_capture_forbids_is_refused(mistake: Callable[[Tensor], Any]) -> None:
    with pretend_device(is_capturing=True), pytest.raises(DeviceError):
        mistake(torch.ones(2, device=DEVICE))
