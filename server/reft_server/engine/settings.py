"""The engine's settings, built once by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ModelPath = Literal["auto", "native", "packed", "generic"]
WeightDtype = Literal["model", "bfloat16", "int8"]
KernelChoice = Literal["auto", "torch", "triton"]
AttentionChoice = Literal["auto", "triton", "torch", "fa3"]
ProductChoice = Literal["auto", "torch", "triton"]
PrefixCacheScope = Literal["shared", "intervention", "off"]


@dataclass(frozen=True)
class EngineSettings:
    """Bounds of the engine.

    Args:
        max_num_seqs: sequences that run at once.
        max_num_batched_tokens: tokens of one step; longer prompts are prefilled in chunks.
        kv_cache_bytes: bound of the KV cache, bytes; None = 2 GiB, on a GPU what is left of `device_memory_share`.
        prefix_cache_bytes: bound of the blocks kept for reuse, bytes, besides `kv_cache_bytes`; None = 1 GiB, on a GPU
            a third of what is left.
        device_memory_share: of a GPU's memory, what the server uses together where caches have no size of their own.
        prefix_cache_scope: `shared`: requests reuse whatever their edits leave equal; `intervention`: only what the
            same interventions computed, as servers do that key their cache by adapter; `off`.
        max_queue_len: waiting requests; one more is refused at once.
        max_queue_time_s: a request that waits longer is refused, seconds.
        max_step_time_s: a step that takes longer hangs: requests fail, and the engine is not ready until it ends.
        max_model_len: context window, tokens; None = the model's own.
        num_threads: torch's threads inside a step; None = one per core.
        model_path: `native` (the Llama shape in C, compiled at the first start), `packed` (the same in torch),
            `generic` (transformers' modules), `auto` picks the first that works.
        kernels: of the packed path: `torch`, or `triton` over paged K and V; `auto` = `triton` on a GPU that has it.
        attention: beside Triton's kernels: our own (`triton`), `torch`'s varlen attention with block tables, or
            FlashAttention-3 (`fa3`); `auto` = the first of `fa3`, `torch` and `triton` that works on this GPU.
        products: of up to 8 rows, beside Triton's kernels: our own (`triton`), or `torch`'s (cuBLAS); `auto` = what is
            faster on this GPU, timed at start for each shape; without decode graphs, torch's.
        decode_graphs: on a GPU, replay decode steps from CUDA graphs, and launch each before the last one's tokens are
            read. Without it every step is launched kernel by kernel: slower, and errors show where they happen.
        weight_dtype: how the native path stores weights: as the `model` has them, or smaller, expanded to float32 when
            they are used; `int8` has one scale for each output.
    """

    max_num_seqs: int = 32
    max_num_batched_tokens: int = 512
    kv_cache_bytes: int | None = None
    prefix_cache_bytes: int | None = None
    device_memory_share: float = 0.9
    prefix_cache_scope: PrefixCacheScope = "shared"
    max_queue_len: int = 256
    max_queue_time_s: float = 60.0
    max_step_time_s: float = 300.0
    max_model_len: int | None = None
    num_threads: int | None = None
    model_path: ModelPath = "auto"
    kernels: KernelChoice = "auto"
    attention: AttentionChoice = "auto"
    products: ProductChoice = "auto"
    decode_graphs: bool = True
    weight_dtype: WeightDtype = "model"
