"""Who takes part in each comparison, and how each is started."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from benchmarks.adapter_files import (
    upload_random_sets,
    upload_sets,
    write_control_vector,
    write_random_loras,
    write_steering_set,
)
from benchmarks.options import Options
from benchmarks.peers import environments
from benchmarks.peers.runners import Runner, ServerRunner, WorkerRunner
from benchmarks.server_process import ServerProcess, start_server

MAX_BATCH, MAX_TOKENS = 32, 256
NUM_CORES = os.cpu_count() or 1


class Contender:
    """A runner, and the adapters that requests to it take in turn; none = the bare base model."""

    def __init__(self, name: str, runner: Runner, adapters: Sequence[str] = ()) -> None:
        self.name, self.runner = name, runner
        self._adapters = itertools.cycle(adapters or [None])

    def run_s(self, prompts: list[list[int]], num_new_tokens: int) -> float:
        """Seconds until every prompt has its tokens, all sent at once."""
        return self.runner.run_s(prompts, num_new_tokens, list(itertools.islice(self._adapters, len(prompts))))


@dataclass(frozen=True)
class Setting:
    """What a comparison starts its contenders with.

    Args:
        folder: for stores, adapters and logs.
        stack: closes every process at the end.
        num_sets: adapters that a mixed job takes in turn.
    """

    options: Options
    folder: Path
    stack: ExitStack
    num_sets: int

    def add(self, runner: Runner) -> None:
        self.stack.callback(runner.close)


def start_ours(setting: Setting, name: str, *flags: str) -> tuple[ServerRunner, list[str]]:
    """Our server, and the names of the sets that it has."""
    folder = setting.folder / name
    folder.mkdir()
    server = start_server(folder / "store", *setting.options.server_flags, *flags, log_path=folder / "server.log")
    runner = ServerRunner(server, version("reft-serve"))
    setting.add(runner)
    server.wait_until_ready()
    model = setting.options.model
    names = asyncio.run(upload_random_sets(server.url, folder, setting.num_sets, model=model))
    return runner, names


def start_hf(setting: Setting) -> list[Contender]:
    """HF `generate`: one static batch."""
    runner = WorkerRunner("benchmarks.peers.hf_worker", str(setting.options.model.path))
    setting.add(runner)
    return [Contender("hf_generate", runner)]


def start_peft(setting: Setting) -> list[Contender]:
    """PEFT on HF `generate`: a static batch whose rows name their LoRA."""
    folder = setting.folder / "loras"
    names = write_random_loras(folder, setting.num_sets, setting.options.model)
    runner = WorkerRunner("benchmarks.peers.hf_worker", str(setting.options.model.path), str(folder))
    setting.add(runner)
    return [Contender("peft_lora_mixed", runner, names)]


def start_pyreft(setting: Setting) -> list[Contender]:
    """pyreft's `generate`: one batch after the other, each under one set."""
    model = setting.options.model
    layers = ";".join(map(str, model.edited_layers))
    arguments = (str(model.path), layers, str(setting.num_sets))
    runner = WorkerRunner("benchmarks.peers.pyreft_worker", *arguments, python=environments.python("pyreft"))
    setting.add(runner)
    return [Contender("pyreft_sets", runner, [f"set-{index}" for index in range(setting.num_sets)])]


def start_vllm(setting: Setting) -> list[Contender]:
    """vLLM's CPU server, compiled (its default): without LoRA, and one that has LoRA switched on."""
    folder = setting.folder / "loras"
    names = write_random_loras(folder, setting.num_sets, setting.options.model)
    return [
        Contender("vllm_cpu", start_vllm_server(setting, "vllm")),
        Contender("vllm_cpu_lora_mixed", start_vllm_server(setting, "vllm-lora", folder), names),
    ]


def start_vllm_server(
    setting: Setting, name: str, loras: Path | None = None, *, max_num_seqs: int = 64
) -> ServerRunner:
    """vLLM in float32 on all cores, with the OpenMP that it ships and tcmalloc where the system has it.

    Args:
        loras: folder of LoRAs to serve beside the base model.
    """
    python = environments.python("vllm")
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--port", "{port}", "--dtype", "float32"]
    command += ["--model", str(setting.options.model.path), "--max-model-len", "2048"]
    command += ["--max-num-seqs", str(max_num_seqs), "--disable-uvicorn-access-log"]
    if loras:
        folders = sorted(loras.iterdir())
        command += ["--enable-lora", "--max-loras", str(len(folders)), "--max-lora-rank", "8", "--lora-modules"]
        command += [f"{folder.name}={folder}" for folder in folders]
    environment = {
        "LD_PRELOAD": ":".join(map(str, environments.vllm_preloads(python))),
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{NUM_CORES - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    server = ServerProcess(command, environment, setting.folder / f"{name}.log")
    runner = ServerRunner(server, environments.installed(python, "vllm-cpu"), adapter_field="model")
    setting.add(runner)
    server.wait_until_ready("/health", timeout_s=900)
    return runner


def start_llama_cpp(setting: Setting) -> list[Contender]:
    """llama.cpp's server: plain, with float16 weights, and steered; and ours steered as it is."""
    model, folder = setting.options.model, setting.folder
    write_control_vector(folder / "control-vector.gguf", 0, model)
    f32, f16 = environments.gguf("f32"), environments.gguf("f16")
    contenders = [
        Contender("llama_cpp_f32", _start_llama_server(setting, "plain", f32)),
        Contender("llama_cpp_f16", _start_llama_server(setting, "f16", f16)),
        Contender(
            "llama_cpp_control_vector",
            _start_llama_server(setting, "steered", f32, "--control-vector", str(folder / "control-vector.gguf")),
        ),
    ]
    ours, _ = start_ours(setting, "ours-steered")
    names = [f"steering-{index}" for index in range(setting.num_sets)]
    asyncio.run(upload_sets(ours.url, folder, names, lambda path, seed: write_steering_set(path, seed, model)))
    return [*contenders, Contender("ours_steering_mixed", ours, names)]


def _start_llama_server(setting: Setting, name: str, gguf: Path, *flags: str) -> ServerRunner:
    """llama.cpp's server on all cores with a slot for every request; its KV cache is float16, its default."""
    program = environments.llama_server()
    command = [str(program), "--port", "{port}", "--model", str(gguf), "--threads", str(NUM_CORES)]
    command += ["--parallel", str(MAX_BATCH), "--ctx-size", str(MAX_BATCH * MAX_TOKENS), *flags]
    server = ServerProcess(command, log_path=setting.folder / f"llama-{name}.log")
    done = subprocess.run([str(program), "--version"], capture_output=True, text=True, check=True)
    lines = (done.stdout + done.stderr).splitlines()
    runner = ServerRunner(server, next((line for line in lines if line.startswith("version")), "unknown"))
    setting.add(runner)
    server.wait_until_ready("/health")
    return runner


def start_weights(setting: Setting) -> list[Contender]:
    """Our own server with smaller weights."""
    contenders = []
    for dtype in ("bfloat16", "int8"):
        runner, names = start_ours(setting, dtype, "--engine-weight-dtype", dtype)
        contenders.append(Contender(f"ours_mixed_{dtype}", runner, names))
    return contenders


COMPARISONS: Mapping[str, Callable[[Setting], list[Contender]]] = MappingProxyType(
    {
        "hf": start_hf,
        "peft": start_peft,
        "weights": start_weights,
        "pyreft": start_pyreft,
        "llama_cpp": start_llama_cpp,
        "vllm": start_vllm,
    }
)
