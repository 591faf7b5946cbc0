"""Tokens chosen in a recorded graph against `sample` on the same logits: the same, bit for bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reft_server.engine.batch import Batch
from reft_server.engine.cuda.device_sampler import DeviceSampler
from reft_server.engine.edit_plan import NO_EDITS
from reft_server.engine.sampler import sample
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams
from tests.recorded_graphs import RecordedGraphs

VOCAB_SIZE = 700
PLAIN: list[dict[str, Any]] = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 1e-9}, {"temperature": 3.0}]
TRUNCATED: list[dict[str, Any]] = [
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 30.0, "top_p": 0.99},  # wider than the candidates
    {"temperature": 0.7, "min_p": 0.1},
    {"temperature": 20.0, "top_k": 400, "top_p": 0.5},  # more than the candidates
    {"temperature": 0.9, "top_k": 300, "min_p": 0.001},
    {"temperature": 1.0, "top_p": 1 - 1e-9},  # 1 in float32
]
MIXES = {"greedy": PLAIN[:1] * 3, "plain": PLAIN, "truncated": TRUNCATED, "all": PLAIN + TRUNCATED}


def sequences(settings: list[dict[str, Any]], seed: int) -> tuple[Sequence, ...]:
    made = []
    for i, one in enumerate(settings):
        params = SamplingParams(max_tokens=9, seed=100 * seed + i, **one)
        made.append(Sequence(GenerationRequest("test", (1,), params), NullStream(), 1))
    return tuple(made)


def batch(rows: tuple[Sequence, ...]) -> Batch:
    chunks = tuple(ScheduledChunk(one, 0, 1) for one in rows)
    return Batch(chunks, [1] * len(rows), list(range(len(rows))), rows, (), NO_EDITS, torch.device("cpu"))


@pytest.mark.parametrize("mix", MIXES)
def test_replayed_choice_equals_the_hosts(mix: str) -> None:
    """With rows that are not finite, equal logits, and fewer rows than the graph has."""
    sampler = DeviceSampler([1, 4, 16], VOCAB_SIZE, torch.device("cpu"), RecordedGraphs())
    num_late = 0
    for seed in range(6):
        ours, theirs = sequences(MIXES[mix], seed), sequences(MIXES[mix], seed)
        logits = torch.randn(len(ours), VOCAB_SIZE, generator=torch.Generator().manual_seed(seed)) * 3
        logits[0, 10:14] = 50.0
        if seed % 2:
            logits[seed % len(ours), 7] = float("nan") if seed == 1 else float("inf")
        expected = sample(logits.clone(), theirs)
        sampler.logits[: len(ours)] = logits
        uniforms = {one: one.random.random() for one in ours if one.sampling.temperature > 0}
        launched = sampler.launch(batch(ours), uniforms)
        sampler.logits.fill_(float("nan"))  # as the next step would overwrite them
        got = launched.read()
        assert [one for one, _ in got] == list(ours)
        for (_, token), wanted in zip(got, expected, strict=True):
            assert token.is_finite == wanted.is_finite
            assert token.token_id == wanted.token_id or not wanted.is_finite
            num_late += token.is_late
    assert bool(num_late) == (mix in ("truncated", "all"))


def test_greedy_rows_need_no_settings_and_no_draws() -> None:
    graphs = RecordedGraphs()
    sampler = DeviceSampler([4], VOCAB_SIZE, torch.device("cpu"), graphs)
    sampler.logits[:3, 5] = 1.0
    rows = sequences(MIXES["greedy"], 0)
    assert [token.token_id for _, token in sampler.launch(batch(rows), {}).read()] == [5, 5, 5]
    sampler.logits[:2, 6] = 2.0
    assert [token.token_id for _, token in sampler.launch(batch(rows[:2]), {}).read()] == [6, 6]
    assert graphs.num_captured == 1


def test_rows_are_chosen_by_their_own_settings_when_others_take_their_place() -> None:
    sampler = DeviceSampler([4], VOCAB_SIZE, torch.device("cpu"), RecordedGraphs())
    settings = [PLAIN[0], PLAIN[1], TRUNCATED[0], TRUNCATED[3]]
    ours, theirs = sequences(settings, 1), sequences(settings, 1)
    logits = torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(2))
    for order in ([0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [0, 3], [1], [2, 0]):
        rows = tuple(ours[i] for i in order)
        expected = sample(logits[order], tuple(theirs[i] for i in order))
        sampler.logits[: len(order)] = logits[order]
        launched = sampler.launch(batch(rows), {one: one.random.random() for one in rows if one.sampling.temperature})
        assert [token.token_id for _, token in launched.read()] == [token.token_id for token in expected]
