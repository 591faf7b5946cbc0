"""What an adapted request costs beyond a base request.

Question: seconds of a job of requests with an adapter, over those of the same job on the base model?
Baseline: the base model in the same round; rounds turn the order round. Ceiling: ratio 1, which a LoRA merged into the
base has by construction.
Two settings, each with its own base: our server over HTTP, and transformers' `generate`, where PEFT's adapters stay
unmerged, as they must when requests differ in them.

    python -m benchmarks.methods.serving [--rounds N] [--only server]
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from benchmarks.figures import ratios, spread, write_result
from benchmarks.machine import describe
from benchmarks.methods.methods import COMPARED, Method
from benchmarks.methods.run import MODEL
from benchmarks.server_process import running_server
from benchmarks.streaming import completion_body, random_prompts, stream_all
from reft_client import AsyncReftClient
from reft_interventions import InterventionSet, Manifest, attach, base_model_spec, save
from reft_interventions.training import TrainingOptions, load_model
from reft_interventions.training.trainable import TrainableSet

RESULT_NAMES = {"server": "methods-serving", "generate": "methods-generate"}
NUM_REQUESTS = {"server": 16, "generate": 8}
NUM_PROMPT_TOKENS, NUM_NEW_TOKENS = 64, 24
GENERATED = tuple(name for name, method in COMPARED.items() if method.starts_from_rows or not name.endswith("-10"))
"""What virtual tokens hold does not change what they cost, so one start is measured."""

Job = Callable[[list[list[int]]], None]
"""Generates for these prompts."""


def main() -> None:
    """Measure both settings, and keep a result of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--only", choices=tuple(RESULT_NAMES), help="one setting; default: both")
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model, _, model_id = load_model(MODEL)
    model.eval().requires_grad_(False)
    for setting, jobs in (("server", _server_jobs), ("generate", _generate_jobs)):
        if arguments.only in (None, setting):
            with jobs(model) as named:
                seconds = _measure(named, NUM_REQUESTS[setting], arguments.rounds)
            write_result(RESULT_NAMES[setting], _result(model_id, setting, seconds))


def _measure(jobs: Mapping[str, Job], num_requests: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round after the first, which warms up; every job has prompts of its own."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for index in range(rounds + 1):
        for turn, name in enumerate(list(jobs)[:: 1 if index % 2 else -1]):
            prompts = random_prompts(1000 * index + turn, num_requests, NUM_PROMPT_TOKENS)
            start = time.perf_counter()
            jobs[name](prompts)
            if index:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _result(model_id: str, setting: str, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    return {
        "machine": describe(),
        "job": {
            "model": model_id,
            "dtype": "float32",
            "setting": setting,
            "num_requests": NUM_REQUESTS[setting],
            "num_prompt_tokens": NUM_PROMPT_TOKENS,
            "num_new_tokens": NUM_NEW_TOKENS,
        },
        "rounds": len(seconds["base"]),
        "base_s": spread(seconds["base"]),
        "over_base": {name: ratios(taken, seconds["base"]) for name, taken in seconds.items() if name != "base"},
    }


@contextmanager
def _server_jobs(model: PreTrainedModel) -> Iterator[dict[str, Job]]:
    """The base model and every ReFT method, in our server."""
    reft = {name: method.reft for name, method in COMPARED.items() if method.reft is not None}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in reft.items():
            save(_untrained_set(model, options), Path(folder) / f"{name}.safetensors")
        with running_server(Path(folder) / "store", "--log-level", "warning") as url:
            asyncio.run(_upload(url, Path(folder), list(reft)))
            names: dict[str, str | None] = {"base": None, **{name: name for name in reft}}
            yield {job: partial(_request, url, name) for job, name in names.items()}


async def _upload(url: str, folder: Path, names: list[str]) -> None:
    async with AsyncReftClient(url) as client:
        for name in names:
            await client.interventions.upload(folder / f"{name}.safetensors", name)


def _request(url: str, name: str | None, prompts: list[list[int]]) -> None:
    bodies = [completion_body(prompt, NUM_NEW_TOKENS, intervention=name) for prompt in prompts]
    asyncio.run(stream_all(url, bodies))


@contextmanager
def _generate_jobs(model: PreTrainedModel) -> Iterator[dict[str, Job]]:
    yield {name: _generate_job(model, COMPARED[name]) for name in GENERATED}


def _generate_job(model: PreTrainedModel, method: Method) -> Job:
    """`generate` under an untrained set or adapter: what it holds does not change what it costs."""
    if method.reft is not None:
        folded = _untrained_set(model, method.reft).fold()

        def generate(prompts: list[list[int]]) -> None:
            with attach(model, folded):
                _generate(model, prompts)

        return generate
    if method.peft is None:
        return partial(_generate, model)
    config_class, arguments = method.peft
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about its own future
        config = getattr(peft, config_class)(task_type="CAUSAL_LM", **arguments)
        adapted = peft.get_peft_model(copy.deepcopy(model), config).eval()
    return partial(_generate, adapted)


def _untrained_set(model: PreTrainedModel, options: Mapping[str, Any]) -> InterventionSet:
    """As training with `start=random` begins, so that it does change the rows."""
    base = base_model_spec(model, MODEL)
    trainable = TrainableSet(TrainingOptions(**{**options, "start": "random"}), base, model.device)
    return trainable.to_intervention_set(Manifest(base_model=base.to_ref(), interventions=trainable.specs))


@torch.inference_mode()
def _generate(model: Any, prompts: list[list[int]]) -> None:
    input_ids = torch.tensor(prompts)
    model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        min_new_tokens=NUM_NEW_TOKENS,
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )


if __name__ == "__main__":
    main()
