"""Decode graphs, recorded and replayed on a CPU, in the interpreter."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from reft_interventions.folded import FoldedSet
from reft_server.engine.batch import Batch, build_batch
from reft_server.engine.cuda import GraphedModel, TritonKernels
from reft_server.engine.cuda.decode_graphs import buckets
from reft_server.engine.edit_plan import EditPlanner
from reft_server.engine.launched import LaunchedStep
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.paged_cache import PagedKVCache
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence
from reft_server.engine.single import run_alone
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams
from tests.launching_model import LaunchingOnHost
from tests.recorded_graphs import RecordedGraphs


def sequence(model: Any, cache: PagedKVCache, tokens: list[int], *sets: FoldedSet) -> Sequence:
    request = GenerationRequest("test", tuple(tokens), SamplingParams(max_tokens=8, temperature=0.0), sets)
    made = Sequence(request, NullStream(), len(model.kv_layout.layers))
    made.slot = cache.allocate(40)
    return made


@pytest.fixture
def packed(tiny_model: Any) -> PackedModel:
    return PackedModel(copy.deepcopy(tiny_model("llama", num_hidden_layers=2)), 64, TritonKernels)


def decode(model: Any, sequences: list[Sequence], planner: EditPlanner) -> tuple[Batch, Tensor]:
    chunks = [ScheduledChunk(one, len(one.token_ids) - 1, 1) for one in sequences]
    batch = build_batch(chunks, torch.device("cpu"), planner)
    return batch, model.forward(batch).clone()


def test_buckets_cover_every_batch_size() -> None:
    assert buckets(6) == [1, 2, 4, 6]
    assert buckets(256)[:6] == [1, 2, 4, 8, 16, 32]
    assert buckets(256)[-1] == 256
    assert buckets(500)[-3:] == [320, 384, 448] or buckets(500)[-1] == 500


def test_replayed_steps_equal_plain_ones(packed: PackedModel, tiny_model: Any, make_set: Any) -> None:
    graphs = RecordedGraphs()
    graphed = GraphedModel(packed, max_num_seqs=4, max_model_len=64, capture=graphs)
    model = tiny_model("llama", num_hidden_layers=2)
    folded = [make_set(model, {"positions": "all", "layer": i}, seed=i).fold() for i in (0, 1)]
    prompts = [([5, 6, 7], ()), ([9], (folded[0],)), ([1, 2], (folded[1], folded[0]))]
    cache = PagedKVCache(packed.kv_layout, budget_bytes=1 << 20, max_tokens=64)
    planner = EditPlanner.for_layout(packed.kv_layout)
    sequences = [sequence(packed, cache, tokens, *sets) for tokens, sets in prompts]
    for one in sequences:
        graphed.forward(build_batch([ScheduledChunk(one, 0, one.prompt_length)], torch.device("cpu"), planner))
        one.token_ids.append(3)
    num_before = graphed.num_replays
    for members in (sequences, sequences[:1], sequences[1:], sequences):
        _, replayed = decode(graphed, members, planner)
        _, plain = decode(packed, members, EditPlanner.for_layout(packed.kv_layout))
        assert torch.equal(replayed, plain)
        for one in members:
            one.token_ids.append(int(replayed.sum() * 1000) % 128)
    assert graphed.num_replays - num_before == 4
    num_captured = graphs.num_captured
    decode(graphed, sequences, planner)
    assert graphs.num_captured == num_captured  # a batch of a known size needs no new graph


def test_no_request_waits_for_a_graph(packed: PackedModel, tiny_model: Any, make_set: Any) -> None:
    graphs = RecordedGraphs()
    graphed = GraphedModel(packed, max_num_seqs=2, max_model_len=64, capture=graphs)
    cache = PagedKVCache(packed.kv_layout, budget_bytes=1 << 20, max_tokens=64)
    graphed.prepare(cache)
    num_recorded = graphs.num_captured
    assert num_recorded == 2 * (2 + 4)  # for each size the base and the edited one, and four ways to choose
    planner = EditPlanner.for_layout(packed.kv_layout)
    folded = make_set(tiny_model("llama", num_hidden_layers=2), {"positions": "all"}).fold()
    members = [sequence(packed, cache, [5, 6, 7]), sequence(packed, cache, [9], folded)]
    for rows in (members, members[:1]):
        chunks = [ScheduledChunk(one, len(one.token_ids) - 1, 1) for one in rows]
        batch = build_batch(chunks, torch.device("cpu"), planner)
        assert torch.equal(graphed.forward(batch), packed.forward(batch))
        graphed.launch(batch, None)
    assert graphed.num_replays == 4
    assert graphs.num_captured == num_recorded


def test_logits_of_several_replays_are_kept_apart(packed: PackedModel) -> None:
    """A replay leaves its logits where the one before left its own."""
    graphed = GraphedModel(packed, max_num_seqs=1, max_model_len=64, capture=RecordedGraphs())
    tokens, sizes = [5, 6, 7, 8, 9], (3, 1, 1)
    replayed = run_alone(graphed, tokens, chunk_sizes=sizes)
    assert graphed.num_replays == 2
    assert torch.equal(replayed, run_alone(packed, tokens, chunk_sizes=sizes))


def test_a_step_with_part_of_a_prompt_is_not_replayed(packed: PackedModel) -> None:
    graphed = GraphedModel(packed, max_num_seqs=4, max_model_len=64, capture=RecordedGraphs())
    cache = PagedKVCache(packed.kv_layout, budget_bytes=1 << 20, max_tokens=64)
    one = sequence(packed, cache, [5, 6, 7])
    batch = build_batch([ScheduledChunk(one, 0, 2)], torch.device("cpu"), EditPlanner.for_layout(packed.kv_layout))
    graphed.forward(batch)
    assert graphed.num_replays == 0


def settle(step: LaunchedStep) -> list[int]:
    tokens = []
    for one, token in step.read():
        one.receive_token(token.token_id)
        tokens.append(token.token_id)
    return tokens


def test_a_launched_step_takes_its_tokens_from_the_one_before(
    packed: PackedModel, tiny_model: Any, make_set: Any
) -> None:
    """Three decode steps, then one with a prompt's chunk beside the decoding rows, none of them waited for."""
    model = tiny_model("llama", num_hidden_layers=2)
    folded = make_set(model, {"positions": "all", "layer": 0}, {"positions": "all", "layer": 1}, seed=1).fold()
    cpu = torch.device("cpu")

    def run(model: Any, *, is_ahead: bool) -> list[list[int]]:
        cache = PagedKVCache(packed.kv_layout, budget_bytes=1 << 20, max_tokens=64)
        planner = EditPlanner.for_layout(packed.kv_layout)
        one, other, late = (sequence(model, cache, [5, 6, i], *sets) for i, sets in enumerate(((), (folded,), ())))
        tokens: list[list[int]] = []
        in_flight: LaunchedStep | None = None
        for members in ([one, other], [other, one], [one], [one, other], [one, other, late], [late, one]):
            chunks = [ScheduledChunk(s, s.num_computed_tokens, s.num_pending_tokens) for s in members]
            batch = build_batch(chunks, cpu, planner)
            launched = model.launch(batch, in_flight)
            for member in members:
                member.num_computed_tokens = len(member.token_ids)
                member.expect_token()
            if in_flight is not None:
                tokens.append(settle(in_flight))
            in_flight = launched
            if not is_ahead:
                tokens.append(settle(in_flight))
                in_flight = None
        return [*tokens, settle(in_flight)] if in_flight is not None else tokens

    graphed = GraphedModel(packed, max_num_seqs=4, max_model_len=64, capture=RecordedGraphs())
    assert run(graphed, is_ahead=True) == run(LaunchingOnHost(packed), is_ahead=False)
    assert graphed.num_replays == 4


def test_a_new_graph_does_not_write_where_the_last_step_did(packed: PackedModel) -> None:
    """Recording runs the kernels once; what the buffers hold of the step before must be gone by then."""
    graphed = GraphedModel(packed, max_num_seqs=4, max_model_len=64, capture=RecordedGraphs())
    cache = PagedKVCache(packed.kv_layout, budget_bytes=1 << 20, max_tokens=64)
    planner = EditPlanner.for_layout(packed.kv_layout)
    sequences = [sequence(packed, cache, [5, 6, 7]), sequence(packed, cache, [9, 8])]
    for one in sequences:
        graphed.forward(build_batch([ScheduledChunk(one, 0, one.prompt_length)], torch.device("cpu"), planner))
        one.token_ids.append(3)
    decode(graphed, sequences, planner)
    for stack in cache.pool.stacks:
        stack.zero_()  # the pages are somebody else's now
    graphed._graph(cache.pool, 1, has_edits=False)
    graphed._graph(cache.pool, 4, has_edits=True)
    assert not any(bool(stack.any()) for stack in cache.pool.stacks)
