"""Logprobs of prompts: the plain model's own in one forward, for any chunks, prefixes in the cache and company."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest
import torch

from reft_interventions import InterventionSet, attach
from reft_server.engine import GenerationRequest, LocalEngine, SamplingParams, TokenOutput
from reft_server.engine.prompt_scores import MAX_ROWS
from tests.parity.harness import TOLERANCE, folded
from tests.parity.test_engine_matches_reference import PATHS, prompt

NUM_TOP = 3


async def run(
    engine: LocalEngine, tokens: tuple[int, ...], sets: tuple[InterventionSet, ...], max_tokens: int, tenant: str = ""
) -> list[TokenOutput]:
    sampling = SamplingParams(
        max_tokens, temperature=0.0, ignore_eos=True, num_logprobs=NUM_TOP, num_prompt_logprobs=NUM_TOP
    )
    request = GenerationRequest("test", tokens, sampling, tuple(folded(one, 1.0) for one in sets), tenant)
    return [output async for step in engine.submit(request) for output in step]


def check(model: Any, tokens: tuple[int, ...], sets: tuple[InterventionSet, ...], outputs: list[TokenOutput]) -> None:
    """Every logprob against one forward of the plain model over the prompt."""
    with torch.inference_mode(), attach(model, [(one, 1.0) for one in sets]):
        logits = model(torch.tensor([tokens])).logits[0].double()
    got = outputs[0].prompt_tokens
    assert [one.token_id for one in got] == list(tokens)
    assert (got[0].logprob, got[0].top_logprobs) == (None, ())
    for one, row in zip(got[1:], logits[:-1], strict=True):
        logprobs, tolerance = row.log_softmax(-1), TOLERANCE * float(row.max() - row.min())
        assert one.token_id is not None
        assert one.logprob == pytest.approx(float(logprobs[one.token_id]), abs=tolerance)
        assert len(one.top_logprobs) == NUM_TOP
        for token_id, value in one.top_logprobs:
            assert value == pytest.approx(float(logprobs[token_id]), abs=tolerance)
        assert one.top_logprobs[-1][1] >= float(logprobs.topk(NUM_TOP).values[-1]) - tolerance
    assert all(not one.prompt_tokens for one in outputs[1:])


@pytest.fixture
def sets(tiny_model: Any, make_set: Any) -> list[tuple[InterventionSet, ...]]:
    model = tiny_model("llama")
    return [
        (),
        (make_set(model, {"positions": "f2+l2"}, seed=1),),
        (make_set(model, {"positions": "all", "formula": "direft"}, seed=2),),
    ]


@pytest.mark.parametrize("max_num_batched_tokens", [7, 512])
@pytest.mark.parametrize("path", PATHS)
def test_prompt_logprobs_are_the_plain_models(
    path: str, max_num_batched_tokens: int, tiny_model: Any, sets: Any, start_engine: Any
) -> None:
    """The same prompts twice, with answers of other requests in between: the second time all are in the cache."""
    model = tiny_model("llama")
    engine = start_engine(model, model_path=path, max_num_batched_tokens=max_num_batched_tokens, max_num_seqs=4)
    cases = [(prompt(length, length // 3), sets[i % 3], i % 3) for i, length in enumerate((1, 2, 16, 17, 40, 41))]

    async def twice() -> list[list[TokenOutput]]:
        return await asyncio.gather(*(run(engine, *case) for case in [*cases, *cases]))

    for (tokens, applied, max_tokens), outputs in zip([*cases, *cases], asyncio.run(twice()), strict=True):
        check(model, tokens, applied, outputs)
        assert sum(one.token_id is not None for one in outputs) == max_tokens
        assert outputs[-1].finish_reason == "length"
        assert sum(one.num_cached_tokens for one in outputs) == 0


def test_prompt_longer_than_the_rows_of_a_step_is_scored_whole(tiny_model: Any, start_engine: Any) -> None:
    """Two of them share a step's rows; a third request, which needs none, does not wait for them."""
    model = tiny_model("llama", max_position_embeddings=1024)
    engine = start_engine(model, max_num_batched_tokens=1024, max_model_len=1024)
    cases = [prompt(MAX_ROWS + 1, 1), prompt(2 * MAX_ROWS + 5, 2), prompt(MAX_ROWS + 2, 3)]

    async def together() -> list[list[TokenOutput]]:
        return await asyncio.gather(*(run(engine, tokens, (), 0) for tokens in cases))

    for tokens, outputs in zip(cases, asyncio.run(together()), strict=True):
        check(model, tokens, (), outputs)


def test_prompt_logprobs_survive_preemption(
    tiny_model: Any, sets: Any, start_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request generates, the next one's prompt is half scored, and then another tenant takes its place."""
    model = tiny_model("llama", max_position_embeddings=1024)
    engine = start_engine(model, max_num_batched_tokens=4, max_num_seqs=2, max_model_len=1024)
    cases = [(prompt(8, 0), sets[1], 300), (prompt(900, 1), sets[2], 3), (prompt(50, 2), sets[0], 3)]
    before = engine.stats().num_preemptions
    forward, steps = engine._model.forward, itertools.count(1)
    reached_8, goes_on = threading.Event(), {1: threading.Event(), 8: threading.Event()}

    def held_forward(batch: Any) -> Any:
        """Steps 1 and 8 wait until more requests have been submitted."""
        step = next(steps)
        if step == 8:
            reached_8.set()
        assert step not in goes_on or goes_on[step].wait(60)
        return forward(batch)

    async def submit(index: int) -> asyncio.Task[list[TokenOutput]]:
        task = asyncio.create_task(run(engine, *cases[index], f"tenant {index // 2}"))
        await asyncio.sleep(0)
        return task

    async def together() -> list[list[TokenOutput]]:
        tasks = [await submit(0), await submit(1)]
        goes_on[1].set()
        assert await asyncio.to_thread(reached_8.wait, 60)
        tasks.append(await submit(2))
        goes_on[8].set()
        return await asyncio.gather(*tasks)

    monkeypatch.setattr(engine._model, "forward", held_forward)
    for (tokens, applied, _), outputs in zip(cases, asyncio.run(together()), strict=True):
        check(model, tokens, applied, outputs)
    assert engine.stats().num_preemptions > before, "nothing was preempted"
