"""A server that answers one request of a thousand with another intervention: `reft bench --verify` sees it."""

from __future__ import annotations

import asyncio
import copy
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from transformers import PreTrainedModel

from reft_client.bench.live import LiveView
from reft_client.bench.measurement import measure
from reft_client.bench.options import BenchOptions
from reft_client.bench.vocabulary import Vocabulary
from reft_client.bench.worker import Job, plan_of
from reft_interventions import FileLimits, InterventionSet, base_model_spec, dumps
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.api.settings import ApiSettings
from reft_server.engine import EngineSettings, build_engine
from reft_server.engine.pool import InterventionPool
from reft_server.engine.types import Engine, GenerationRequest
from reft_server.registry import Registry
from tests.fakes.tokenizers import byte_level_tokenizer

NUM_REQUESTS = 1000
NUM_REFERENCES = 6
FIXED = {"distinct_prompts": 3, "token_ids": (3, 100), "ignore_eos": True}
DEADLINE_S = 30.0


def plant_swap(engine: Engine, number: int) -> None:
    """Let the engine take the other set for the request of that number; the API still reports the right one."""
    submit, numbers = engine.submit, itertools.count(1)
    seen: dict[str, Any] = {}

    def swapping(request: GenerationRequest) -> Any:
        seen.setdefault(request.interventions[0].content_hash, request.interventions)
        if next(numbers) == number:
            own = request.interventions[0].content_hash
            request = replace(request, interventions=next(sets for key, sets in seen.items() if key != own))
        return submit(request)

    engine.submit = swapping  # type: ignore[method-assign]


@contextmanager
def serving(engine: Engine, model: PreTrainedModel, folder: Path) -> Iterator[str]:
    """The real API over the engine, in a thread; gives the URL."""
    base = base_model_spec(model, "tiny")
    registry = Registry(InterventionStore(folder), InterventionPool(1 << 20), engine, base, FileLimits())
    app = create_app(engine, byte_level_tokenizer(), registry, ApiSettings())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        deadline = time.monotonic() + DEADLINE_S
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(DEADLINE_S)


def test_bench_catches_two_interventions_swapped_once_in_a_thousand(
    tmp_path: Path, tiny_model: Callable[..., PreTrainedModel], make_set: Callable[..., InterventionSet]
) -> None:
    model = tiny_model("llama", vocab_size=len(byte_level_tokenizer()))
    engine = build_engine(copy.deepcopy(model), "tiny", EngineSettings(kv_cache_bytes=1 << 22, num_threads=1))
    with serving(engine, model, tmp_path) as url:
        for seed, name in enumerate("ab"):
            content = dumps(make_set(model, {"positions": "all"}, seed=seed, strength=4.0, name=name))
            httpx.post(f"{url}/v1/interventions", params={"name": name}, content=content).raise_for_status()
        plant_swap(engine, NUM_REFERENCES + 700)
        lengths = {name: {"kind": "fixed", "parameters": (4,)} for name in ("prompt_tokens", "max_tokens")}
        load = {"concurrency": 16, "num_requests": NUM_REQUESTS, "interventions": ("a", "b"), "mix": "uniform"}
        options = BenchOptions.model_validate({"url": url, "verify": True, **load, **lengths, **FIXED})
        job = Job(options=options, vocabulary=Vocabulary())
        document = asyncio.run(measure(job, plan_of(job), LiveView(StringIO(), is_quiet=True)))
    result = document["verification"]
    assert document["summary"]["errors"] == {}
    assert (result["num_references"], result["num_compared"]) == (NUM_REFERENCES, NUM_REQUESTS)
    (mismatch,) = result["mismatches"]
    assert mismatch["answered_by"] == mismatch["intervention"]
    assert mismatch["expected"] != mismatch["actual"]
