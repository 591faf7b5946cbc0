"""Our attention kernels alone, with the blocks that they choose and with others: where to look if a step is slow."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.gpu.inputs import attention_shape, digits, kernel_s
from benchmarks.gpu.plan import Plan
from reft_server.engine.cuda import attention_launch
from reft_server.engine.cuda.attention_launch import LARGE_BLOCK, SMALL_BLOCK, Pages, PrefillBlock
from reft_server.engine.kernels import AttentionShape
from reft_server.engine.kv_memory import BLOCK_SIZE

_MOST_LAUNCHES = 32
"""With pages of their own, so that one launch's K and V are not in the GPU's caches when it is launched again."""


def attention_kernels(plan: Plan, found: dict[str, Any]) -> None:
    """TFLOP/s of a prompt by block, and GB/s of K and V in decoding by batch and number of splits."""
    shape = attention_shape(plan)
    found["prompt"], found["decode"] = {}, {}
    for batch_size in plan.batch_sizes:
        found["decode"][f"{batch_size}"] = _decode_rate(plan, shape, batch_size, None)
    for num_splits in (8, 16, 64) if plan.is_on_gpu else (1,):
        found["decode"][f"1 in {num_splits} splits"] = _decode_rate(plan, shape, 1, num_splits)
    for block in (LARGE_BLOCK, SMALL_BLOCK) if plan.is_on_gpu else (SMALL_BLOCK,):
        name = f"{block.num_queries} queries, {block.num_keys} keys, {block.num_warps} warps"
        found["prompt"][name] = _prompt_rate(plan, shape, block)


def _decode_rate(plan: Plan, shape: AttentionShape, batch_size: int, num_splits: int | None) -> dict[str, float]:
    context = plan.contexts[-1]
    pages_each = -(-context // BLOCK_SIZE)
    num_launches = max(1, min(_MOST_LAUNCHES, max(plan.batch_sizes) // batch_size))
    pages = _pages(plan, shape, num_launches * batch_size * pages_each)
    order = torch.randperm(len(pages.keys), device=plan.device).int().view(num_launches, batch_size, pages_each)
    lengths = torch.full((batch_size,), context, dtype=torch.int32, device=plan.device)
    query = torch.randn(batch_size, shape.num_heads, shape.head_dim, device=plan.device).to(plan.dtype)
    out = torch.empty_like(query)
    launches = [
        partial(attention_launch.decode, query, pages, tables, lengths, shape, None, out, num_splits)
        for tables in order
    ]
    seconds = kernel_s(plan, launches)
    num_bytes = (pages.keys.nbytes + pages.values.nbytes) / num_launches
    return {"us": digits(1e6 * seconds), "gb_per_s": digits(num_bytes / seconds / 1e9)}


def _prompt_rate(plan: Plan, shape: AttentionShape, block: PrefillBlock) -> dict[str, float]:
    num_tokens = plan.num_prefill_tokens
    pages = _pages(plan, shape, -(-num_tokens // BLOCK_SIZE))
    tables = torch.randperm(len(pages.keys), device=plan.device).int()[None]
    rows = attention_launch.prefill_tiles([(0, 0, num_tokens)], block.num_queries)
    tiles = torch.tensor(rows, dtype=torch.int32, device=plan.device)
    query = torch.randn(num_tokens, shape.num_heads, shape.head_dim, device=plan.device).to(plan.dtype)
    out = torch.empty_like(query)
    launch = partial(attention_launch.prefill, query, pages, tables, tiles, shape, None, out, block)
    seconds = kernel_s(plan, [launch])
    num_operations = 4 * shape.num_heads * shape.head_dim * num_tokens * (num_tokens + 1) / 2  # the causal half
    return {"us": digits(1e6 * seconds), "tflops": digits(num_operations / seconds / 1e12)}


def _pages(plan: Plan, shape: AttentionShape, number: int) -> Pages:
    size = (number, shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    keys, values = torch.randn(2, *size, dtype=plan.dtype, device=plan.device)
    return Pages(keys, values)
