"""What a step costs the host: the engine's thread, and the event loop with text, events and HTTP, over a free model.

Question: how long do the server's own threads work for a decode step of many rows, when the device takes no time; and
how many tokens/s do they let through when it takes as long as a GPU would? Both threads share one interpreter lock, so
their sum has to stay below the device's time. Ceiling: rows per step, over the device's time.

The device is left out: graphs replay nothing, and tokens come from a text. The rest is the server's own: scheduler,
paged cache, static inputs of decode graphs (without pinning), run-ahead, detokenizer, events, HTTP by uvicorn. Clients
are a process of their own, which only counts bytes. `python -m benchmarks.host` takes about a minute.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.figures import spread
from benchmarks.options import Options, parse_options
from reft_interventions import BaseModelSpec
from reft_interventions.file_format import FileLimits
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.api.settings import ApiSettings
from reft_server.connections import ConnectionLimits, HttpConfig
from reft_server.engine import EngineSettings, GenerationRequest, LocalEngine, SamplingParams
from reft_server.engine.batch import Batch
from reft_server.engine.cuda.decode_graphs import GraphedModel
from reft_server.engine.device import CacheSizes
from reft_server.engine.kv_memory import KVLayout
from reft_server.engine.launched import LaunchedStep
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.pool import InterventionPool
from reft_server.engine.types import ModelInfo
from reft_server.http_server import HttpServer
from reft_server.registry import Registry

_MAX_MODEL_LEN = 2048
_NUM_LOGITS = 8  # tokens don't come from them
_LAYOUT = KVLayout(((1, 8, 8),), torch.bfloat16, torch.device("cpu"), is_paged=True)


@dataclass(frozen=True)
class Job:
    """`num_requests` at once, each of a short prompt and `num_tokens` to come; a step takes the device `device_s`."""

    num_requests: int
    num_tokens: int
    device_s: float
    prompt: str


class _FreeLayers:
    """In the place of `PackedModel`: nothing is computed."""

    kv_layout = _LAYOUT
    vocab_size = _NUM_LOGITS

    def begin(self, batch: Batch) -> Any:
        return _FreeStep(batch.input_ids, len(batch.sampled_rows))

    def run(self, step: Any) -> Tensor:
        return torch.zeros(step.num_sampled, _NUM_LOGITS)


@dataclass(frozen=True)
class _FreeStep:
    input_ids: Tensor
    num_sampled: int


class FreeModel(GraphedModel):
    """Decode graphs that replay nothing. Each row's tokens are a text's, from another place on.

    Args:
        device_s: how long a step takes after the one before it.
    """

    def __init__(self, text: list[int], num_rows: int, device_s: float) -> None:
        layers = cast(PackedModel, _FreeLayers())
        super().__init__(layers, max_num_seqs=num_rows, max_model_len=_MAX_MODEL_LEN, capture=_capture_nothing)
        self._text = torch.tensor(text)
        self._places = torch.arange(num_rows) * 37
        self._device_s = device_s
        self._ends_at = 0.0

    def launch(self, batch: Batch, previous: LaunchedStep | None) -> LaunchedStep:
        self._places += 1
        torch.index_select(self._text, 0, self._places % len(self._text), out=self._sampler.tokens)
        launched = super().launch(batch, previous)
        if self._device_s:
            self._ends_at = ends_at = max(self._ends_at, time.perf_counter()) + self._device_s
            launched.wait = lambda: time.sleep(max(0.0, ends_at - time.perf_counter()))
        return launched


def _capture_nothing(_: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    return lambda: None, torch.empty(0)


def make_engine(job: Job, text: list[int], vocab_size: int) -> LocalEngine:
    """An engine with a place for every request."""
    info = ModelInfo("free", "sha256:" + "0" * 64, 8, 1, vocab_size, _MAX_MODEL_LEN, frozenset(), "bfloat16", "cpu")
    settings = EngineSettings(max_num_seqs=job.num_requests, max_num_batched_tokens=8192, max_queue_len=4096)
    model = FreeModel(text, job.num_requests, job.device_s)
    return LocalEngine(model, info, settings, CacheSizes(1 << 28, 1 << 24))


@dataclass
class Costs:
    """CPU time of the two threads, and wall time, over steps that were all decode."""

    engine_s: float = 0.0
    loop_s: float = 0.0
    wall_s: float = 0.0
    num_steps: int = 0
    num_tokens: int = 0

    def figures(self) -> dict[str, float]:
        return {
            "engine_ms_per_step": 1e3 * self.engine_s / max(1, self.num_steps),
            "loop_us_per_token": 1e6 * self.loop_s / max(1, self.num_tokens),
            "wall_ms_per_step": 1e3 * self.wall_s / max(1, self.num_steps),
            "tokens_per_s": self.num_tokens / self.wall_s,
        }


class _Meter:
    """Reads the clocks between the first and the last quarter of the tokens: no prompts, and all requests run."""

    def __init__(self, engine: LocalEngine, job: Job) -> None:
        self._engine = engine
        self._total = job.num_requests * job.num_tokens

    async def measure(self) -> Costs:
        await self._reach(self._total // 4)
        first = self._read()
        await self._reach(3 * self._total // 4)
        return Costs(*(end - start for start, end in zip(first, self._read(), strict=True)))

    async def _reach(self, num_tokens: int) -> None:
        while self._engine.stats().num_generated_tokens < num_tokens:
            await asyncio.sleep(0.002)

    def _read(self) -> tuple[float, float, float, int, int]:
        thread = cast(threading.Thread, self._engine._thread)
        stats = self._engine.stats()
        return (
            time.clock_gettime(time.pthread_getcpuclockid(cast(int, thread.ident))),
            time.thread_time(),
            time.perf_counter(),
            stats.num_steps,
            stats.num_generated_tokens,
        )


async def measure_engine(engine: LocalEngine, job: Job, prompt_ids: list[int]) -> Costs:
    """The engine with readers that drop what they get."""
    sampling = SamplingParams(job.num_tokens, temperature=0.8, top_p=0.95, seed=1, ignore_eos=True)

    async def read(number: int) -> None:
        async for _ in engine.submit(GenerationRequest(str(number), tuple(prompt_ids), sampling)):
            pass

    engine.start()
    readers = [asyncio.create_task(read(number)) for number in range(job.num_requests)]
    costs = await _Meter(engine, job).measure()
    await asyncio.gather(*readers)
    await engine.stop()
    return costs


async def measure_http(engine: LocalEngine, job: Job, tokenizer: Any, folder: Path) -> Costs:
    """The whole server, with clients in a process of their own."""
    info = engine.model_info
    spec = BaseModelSpec(info.model_id, info.fingerprint, info.hidden_size, info.num_layers)
    registry = Registry(InterventionStore(folder), InterventionPool(1 << 20), engine, spec, FileLimits())
    app = create_app(engine, tokenizer, registry, ApiSettings(max_concurrent_requests=job.num_requests))
    listener = socket.create_server(("127.0.0.1", 0), backlog=job.num_requests)
    config = HttpConfig(app, ConnectionLimits(), log_config=None, access_log=False)
    server = HttpServer(config, "", engine.stop, grace_s=1.0, stop_deadline_s=10.0)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.01)
    clients = multiprocessing.get_context("spawn").Process(target=run_clients, args=(listener.getsockname()[1], job))
    clients.start()
    costs = await _Meter(engine, job).measure()
    await asyncio.to_thread(clients.join)
    server.should_exit = True
    await serving
    if clients.exitcode:
        raise RuntimeError("a client did not get its whole answer")
    return costs


def run_clients(port: int, job: Job) -> None:
    """All requests at once; each reads its answer to the end.

    Raises:
        RuntimeError: an answer was not whole.
    """
    body = json.dumps(
        {
            "prompt": job.prompt,
            "max_tokens": job.num_tokens,
            "temperature": 0.8,
            "top_p": 0.95,
            "stream": True,
            "ignore_eos": True,
        }
    ).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + b"\r\nconnection: close\r\n\r\n" + body)
        end = b""
        while data := await reader.read(1 << 16):
            end = (end + data)[-64:]
        writer.close()
        if b"[DONE]" not in end:
            raise RuntimeError(end)

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(job.num_requests)))

    asyncio.run(run())


def run(options: Options) -> dict[str, Any]:
    """Measure, keep and print."""
    tokenizer = AutoTokenizer.from_pretrained(options.model.path)
    text = tokenizer.encode((Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")[:20_000])
    num_requests, num_tokens = (8, 16) if options.is_quick else (256, 256)
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.num_rounds(3)):
        for device_ms in (0.0, 7.0):
            job = Job(num_requests, num_tokens, device_ms / 1e3, "The quick brown fox jumps over the lazy dog")
            with tempfile.TemporaryDirectory() as folder, options.hold_machine(is_exclusive=True):
                prompt_ids = tokenizer.encode(job.prompt)
                alone = asyncio.run(measure_engine(make_engine(job, text, len(tokenizer)), job, prompt_ids))
                engine = make_engine(job, text, len(tokenizer))
                served = asyncio.run(measure_http(engine, job, tokenizer, Path(folder) / "store"))
            found.setdefault(f"engine, device {device_ms:g} ms", []).append(alone.figures())
            found.setdefault(f"HTTP, device {device_ms:g} ms", []).append(served.figures())
    figures = {name: {key: spread([one[key] for one in rounds]) for key in rounds[0]} for name, rounds in found.items()}
    for name, one in figures.items():
        print(f"{name:24}", *(f"{key} {value['median']:10.3f}" for key, value in one.items()))
    return options.keep("host", {"num_requests": num_requests, "num_tokens": num_tokens}, figures)


if __name__ == "__main__":
    run(parse_options(__doc__))
