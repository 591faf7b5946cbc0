"""What the sections share: a random model, random sets, and how time is taken on a device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu.plan import Plan
from benchmarks.machine import median
from reft_interventions.folded import FoldedIntervention, FoldedSet
from reft_interventions.folding import LowRankEdit
from reft_interventions.positions import InterventionPositions
from reft_server.engine import EngineSettings
from reft_server.engine.kernels import AttentionShape

RANK = 4
_FLUSHED_BYTES = 512 << 20
PROMPT_ONLY, EVERYWHERE, LAST = "f7+l7", "all", "l1"


def settings(plan: Plan, **changes: Any) -> EngineSettings:
    """Triton's kernels, and room for what the plan runs at once."""
    values: dict[str, Any] = {
        "kernels": "triton",
        "model_path": "packed",
        "max_num_seqs": max(plan.num_concurrent, *plan.batch_sizes),
        "max_num_batched_tokens": max(plan.num_prefill_tokens, 16),
        "kv_cache_bytes": plan.kv_bytes,
        "prefix_cache_bytes": plan.kv_bytes // 4,
        "max_queue_len": 4096,
    }
    return EngineSettings(**{**values, **changes})


def random_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Llama with random weights, made on the device."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **config), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def attention_shape(plan: Plan) -> AttentionShape:
    """Heads of the plan's model."""
    num_heads = plan.config["num_attention_heads"]
    head_dim = plan.width // num_heads
    return AttentionShape(num_heads, plan.config["num_key_value_heads"], head_dim, head_dim**-0.5)


def random_edit(width: int, generator: torch.Generator, strength: float = 0.01) -> LowRankEdit:
    """A low-rank edit on the generator's device."""
    device = generator.device
    down, up = torch.randn(2, RANK, width, generator=generator, device=device) / width**0.5
    return LowRankEdit(down, torch.randn(RANK, generator=generator, device=device), up * strength)


def random_set(
    num_layers: int,
    width: int,
    positions: str,
    seed: int,
    *,
    strength: float = 0.01,
    device: torch.device | None = None,
) -> FoldedSet:
    """A folded low-rank set on `block_output` of every layer."""
    generator = torch.Generator(device or "cpu").manual_seed(seed)
    where = InterventionPositions(positions)
    edits = [random_edit(width, generator, strength) for _ in range(num_layers)]
    interventions = (FoldedIntervention(layer, "block_output", where, edit) for layer, edit in enumerate(edits))
    return FoldedSet(f"random-{positions}-{seed}", tuple(interventions))


def timed(plan: Plan, function: Callable[[], object]) -> list[float]:
    """Seconds of each of the plan's repeats, after those that don't count.

    On a GPU by its own clock. Ahead of each, a buffer larger than the GPU's caches is filled: they are cold, and the
    host has launched the function before the GPU comes to it.
    """
    if not plan.is_on_gpu:
        return [_host_s(function) for _ in range(plan.num_warm_ups + plan.repeats)][plan.num_warm_ups :]
    others = torch.empty(_FLUSHED_BYTES, dtype=torch.uint8, device=plan.device)
    milliseconds = []
    for _ in range(plan.num_warm_ups + plan.repeats):
        started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        others.zero_()
        started.record()
        function()
        ended.record()
        ended.synchronize()
        milliseconds.append(started.elapsed_time(ended))
    return [one / 1e3 for one in milliseconds[plan.num_warm_ups :]]


def _host_s(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def kernel_s(plan: Plan, launches: Sequence[Callable[[], object]]) -> float:
    """Median seconds of one of several launches, without the host's: on a GPU they are replayed from a graph.

    Each should work on memory of its own, so that the caches of the GPU don't hold it from the last time.
    """

    def launch_all() -> None:
        for launch in launches:
            launch()

    if not plan.is_on_gpu:
        return median(timed(plan, launch_all)) / len(launches)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        launch_all()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch_all()
    return median(timed(plan, graph.replay)) / len(launches)


def synchronize(plan: Plan) -> None:
    """Wait for the device."""
    if plan.is_on_gpu:
        torch.cuda.synchronize()


def digits(value: float) -> float:
    """With four significant digits."""
    return float(f"{value:.4g}")
