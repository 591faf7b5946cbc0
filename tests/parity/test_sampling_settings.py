"""Penalties, biases and bans in a batch of other requests: the same tokens as transformers' own `generate`, alone."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch

from reft_interventions import attach
from reft_server.engine import GenerationRequest, LocalEngine, SamplingParams
from tests.parity.harness import TOLERANCE, folded, relative_margin
from tests.parity.test_engine_matches_reference import PATHS, prompt

MAX_TOKENS = 24

# our settings, and what `generate` calls them
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
    ({"logit_bias": ((5, 4.0), (9, -100.0))}, {"sequence_bias": [[[5], 4.0], [[9], -100.0]]}),
    ({"min_tokens": MAX_TOKENS, "stop_token_ids": frozenset(range(0, 128, 2))},
     {"min_new_tokens": MAX_TOKENS, "eos_token_id": list(range(0, 128, 2))}),
    ({"repetition_penalty": 0.8, "logit_bias": ((7, 3.0),)},
     {"repetition_penalty": 0.8, "sequence_bias": [[[7], 3.0]]}),
]  # fmt: skip


async def run(
    engine: LocalEngine, tokens: tuple[int, ...], sets: tuple[Any, ...], tenant: str = "", **sampling: Any
) -> list[int]:
    params = SamplingParams(max_tokens=MAX_TOKENS, **{"temperature": 0.0, "ignore_eos": True, **sampling})
    request = GenerationRequest("test", tokens, params, tuple(folded(one, 1.0) for one in sets), tenant)
    return [output.token_id or 0 async for step in engine.submit(request) for output in step]


@pytest.mark.parametrize("path", PATHS)
def test_settings_in_a_batch_are_transformers_alone(
    path: str, tiny_model: Any, make_set: Any, start_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second tenant comes later and takes places from the first one, whose rows are computed again."""
    model = tiny_model("llama")
    edits = [(make_set(model, {"positions": "f2+l2"}, seed=1),), (make_set(model, {"positions": "all"}, seed=2),)]
    engine = start_engine(model, model_path=path, max_num_batched_tokens=16, max_num_seqs=5)
    cases = [(prompt(5 + 3 * i, i), edits[i], *settings) for i in range(2) for settings in SETTINGS]

    forward, has_tokens, has_both = engine._model.forward, threading.Event(), threading.Event()

    def held_forward(batch: Any) -> Any:
        """With 20 tokens generated, the step waits until the second tenant's requests have been submitted."""
        if engine.stats().num_generated_tokens >= 20:
            has_tokens.set()
            assert has_both.wait(60)
        return forward(batch)

    async def together() -> list[list[int]]:
        tasks = []
        for index, (tokens, sets, ours, _) in enumerate(cases):
            if index == len(SETTINGS):
                assert await asyncio.to_thread(has_tokens.wait, 60)
            tasks.append(asyncio.create_task(run(engine, tokens, sets, f"tenant {index // len(SETTINGS)}", **ours)))
        await asyncio.sleep(0)  # each task has submitted its request
        has_both.set()
        return await asyncio.gather(*tasks)

    monkeypatch.setattr(engine._model, "forward", held_forward)

    for (tokens, sets, ours, theirs), got in zip(cases, asyncio.run(together()), strict=True):
        with torch.inference_mode(), attach(model, [(one, 1.0) for one in sets]):
            output = model.generate(
                torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.int64), do_sample=False,
                max_new_tokens=MAX_TOKENS, output_scores=True, return_dict_in_generate=True, **theirs,
            )  # fmt: skip
        expected = output.sequences[0, len(tokens) :].tolist()
        step = next((i for i, (a, b) in enumerate(zip(got, expected, strict=True)) if a != b), None)
        assert step is None or relative_margin(output.scores[step][0]) < TOLERANCE, (ours, step, got, expected)
    assert engine.stats().num_preemptions > 0, "nothing was preempted"


@pytest.mark.parametrize("path", PATHS)
def test_sampled_answers_do_not_depend_on_company(path: str, tiny_model: Any, start_engine: Any) -> None:
    engine = start_engine(tiny_model("llama"), model_path=path)
    settings: list[dict[str, Any]] = [
        {"temperature": 1.0, "seed": 1, "presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"temperature": 1.3, "seed": 2, "min_p": 0.1, "top_p": 0.9},
        {"temperature": 0.0, "frequency_penalty": 2.0},
        {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.5, "top_k": 20},
        {"temperature": 1.0, "seed": 4},
    ]
    tokens = prompt(12, 3)

    async def answers() -> tuple[list[list[int]], list[list[int]]]:
        alone = [await run(engine, tokens, (), **one) for one in settings]
        together = await asyncio.gather(*(run(engine, tokens, (), **one) for one in settings * 2))
        return alone, together

    alone, together = asyncio.run(answers())
    assert together == alone * 2
    assert len(set(map(tuple, alone))) == len(settings)
