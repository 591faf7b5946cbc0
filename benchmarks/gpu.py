"""What does the GPU path reach of what the GPU can do?

Question: is it exact, and which share of the bandwidth and product ceilings do its steps reach, base and edited?
Baseline: the base model on the same engine in the same run; for exactness the float32 reference on the CPU.
Ceiling: copy bandwidth and the bf16 matrix product rate, measured first.

    python -m benchmarks.gpu             on a GPU, under 8 minutes; writes benchmarks/results/gpu.json
    python -m benchmarks.gpu --dry-run   the same steps with a tiny model in Triton's interpreter: figures mean nothing

Exactness comes first: nothing is measured on a path that is not exact. Every figure is printed at the end; a section
that fails is reported as failed, and the others are taken all the same.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.figures import write_result
from benchmarks.machine import describe

_GIB = 1 << 30


@dataclass(frozen=True)
class Plan:
    """Sizes of one run."""

    device: torch.device
    config: dict[str, Any]
    dtype: torch.dtype
    exactness_chunks: tuple[int, ...]
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
    kv_bytes: int
    num_warm_ups: int
    repeats: int


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
        kv_bytes=1 << 22,
        num_warm_ups=0,
        repeats=1,
    )


def main() -> None:
    """Parse arguments, run every section, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model in Triton's interpreter")
    options = parser.parse_args()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no GPU here; --dry-run tries the script without one")
    plan = dry_plan() if options.dry_run else full_plan()
    result = run(plan)
    result["is_dry_run"] = options.dry_run
    if options.dry_run:
        print(result)
    else:
        write_result("gpu", result)


def run(plan: Plan) -> dict[str, Any]:
    """Every section of one plan."""
    from benchmarks import gpu_sections as sections  # after TRITON_INTERPRET is set: it imports the kernels

    result: dict[str, Any] = {"machine": describe(), "device": _device_name(plan.device)}
    started = time.perf_counter()
    result["ceilings"] = sections.ceilings(plan)
    print(f"ceilings {result['ceilings']}", flush=True)
    result["exactness"] = sections.exactness(plan)
    print(f"exactness {result['exactness']}", flush=True)
    serving = sections.Serving(plan)
    for name, section in {
        "decode_ms": serving.decode,
        "prefill": serving.prefill,
        "activation_ms": serving.activation,
        "throughput": serving.throughput,
        "shared_prefix": serving.shared_prefix,
    }.items():
        result[name] = attempted(section)
        print(f"[{time.perf_counter() - started:5.0f} s] {name} {result[name]}", flush=True)
    serving.stop()
    result["seconds"] = round(time.perf_counter() - started, 1)
    return result


def attempted(section: Callable[[], Any]) -> Any:
    """A section's figures, or that it failed: one of them must not cost the others their time on the GPU."""
    try:
        return section()
    except Exception as error:  # noqa: BLE001 - reported in the result
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu, Triton interpreted"


if __name__ == "__main__":
    main()
