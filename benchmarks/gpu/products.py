"""The model's products of few rows alone, by cuBLAS and by our own kernel, as a share of the copy bandwidth."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.inputs import digits, kernel_s
from benchmarks.gpu.plan import Plan
from reft_server.engine.cuda.products import TILES, TIMED_ROWS, few_rows

_WEIGHT_BYTES = 2 << 30
"""Of all launches of one replay: far more than the caches of the GPU hold, and long beside the launch of the graph."""


def products(plan: Plan, found: dict[str, Any]) -> None:
    """GB/s at which weights are read, by product and number of rows: cuBLAS's, and each tile's of ours."""
    for name, (num_outputs, width) in _shapes(plan).items():
        size = num_outputs * width * plan.dtype.itemsize
        number = max(_WEIGHT_BYTES // size, 1) if plan.is_on_gpu else 1
        weights = [torch.randn(num_outputs, width, dtype=plan.dtype, device=plan.device) for _ in range(number)]
        found[name] = {}
        for num_rows in TIMED_ROWS if plan.is_on_gpu else TIMED_ROWS[:1]:
            hidden = torch.randn(num_rows, width, dtype=plan.dtype, device=plan.device)
            launches = {"cublas": [partial(F.linear, hidden, weight) for weight in weights]}
            for tile in TILES:
                ours = [partial(few_rows, hidden, weight, None, tile) for weight in weights]
                launches[f"triton-{tile.num_outputs}"] = ours
            rates = {one: digits(size / kernel_s(plan, timed) / 1e9) for one, timed in launches.items()}
            found[name][f"{num_rows}"] = rates


def _shapes(plan: Plan) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each product of a layer, and of the last one."""
    config, width = plan.config, plan.width
    inner = config["intermediate_size"]
    num_heads = config["num_attention_heads"]
    num_columns = width * (num_heads + 2 * config["num_key_value_heads"]) // num_heads
    return {
        "q, k, v": (num_columns, width),
        "attention output": (width, width),
        "gate, up": (2 * inner, width),
        "down": (width, inner),
        "lm_head": (config["vocab_size"], width),
    }
