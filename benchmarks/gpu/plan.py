"""The sizes of a run: Llama-3.1-8B's shape on a GPU, or something tiny in Triton's interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

_GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """Sizes of one run.

    Args:
        kv_bytes: of the KV cache; the prefix cache has a quarter more.
        edited_rows: of the edit kernel's own measurement.
        generate_sizes: batches of the comparison with `generate`, and its new tokens.
    """

    device: torch.device
    config: dict[str, Any]
    dtype: torch.dtype
    exactness_chunks: tuple[int, ...]
    num_exactness_requests: int
    num_exactness_tokens: int
    batch_sizes: tuple[int, ...]
    contexts: tuple[int, ...]
    num_prefill_tokens: int
    num_concurrent: int
    num_prompt_tokens: int
    num_new_tokens: int
    num_distinct: tuple[int, ...]
    num_distinct_everywhere: tuple[int, ...]
    prefix_tokens: int
    num_prefix_sets: int
    edited_rows: int
    generate_sizes: tuple[int, ...]
    num_generate_tokens: int
    num_churned_sets: int
    kv_bytes: int
    num_warm_ups: int
    repeats: int

    @property
    def is_on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def num_layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def width(self) -> int:
        return int(self.config["hidden_size"])


LLAMA_3_1_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}
TINY = {
    **LLAMA_3_1_8B,
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}


def full_plan() -> Plan:
    """On a GPU with about 140 GB."""
    return Plan(
        device=torch.device("cuda"),
        config=LLAMA_3_1_8B,
        dtype=torch.bfloat16,
        exactness_chunks=(9, 71, 1, 1, 12),
        num_exactness_requests=16,
        num_exactness_tokens=24,
        batch_sizes=(1, 8, 32, 128, 256),
        contexts=(512, 1024),
        num_prefill_tokens=8192,
        num_concurrent=256,
        num_prompt_tokens=128,
        num_new_tokens=256,
        num_distinct=(8, 64, 256, 512),
        num_distinct_everywhere=(8, 256),
        prefix_tokens=2048,
        num_prefix_sets=100,
        edited_rows=4096,
        generate_sizes=(1, 32),
        num_generate_tokens=64,
        num_churned_sets=200,
        kv_bytes=48 * _GIB,
        num_warm_ups=3,
        repeats=20,
    )


def dry_plan() -> Plan:
    """In the interpreter, in seconds."""
    return Plan(
        device=torch.device("cpu"),
        config=TINY,
        dtype=torch.float32,
        exactness_chunks=(3, 6, 1, 2),
        num_exactness_requests=3,
        num_exactness_tokens=2,
        batch_sizes=(2,),
        contexts=(20,),
        num_prefill_tokens=20,
        num_concurrent=2,
        num_prompt_tokens=4,
        num_new_tokens=2,
        num_distinct=(2,),
        num_distinct_everywhere=(2,),
        prefix_tokens=32,
        num_prefix_sets=2,
        edited_rows=32,
        generate_sizes=(2,),
        num_generate_tokens=2,
        num_churned_sets=4,
        kv_bytes=1 << 22,
        num_warm_ups=0,
        repeats=1,
    )
