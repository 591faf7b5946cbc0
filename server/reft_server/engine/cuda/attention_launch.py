"""The kernels of attention as functions of tensors: grids and blocks are chosen here, from what the compiler says.

No block spills registers, K and V come in pieces of 16 bytes, and prompts' products use a Hopper GPU's `wgmma`: a test
compiles them and looks (docs/log.md has the numbers).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from reft_server.engine.kernels import AttentionLayer, AttentionShape
from reft_server.engine.kv_memory import BLOCK_SIZE

from .attention_kernels import decode_kernel, merge_kernel, prefill_kernel
from .launch import is_interpreted
from .rope_kernel import rope_write_kernel

_NUM_PROGRAMS = 264  # of a decode launch, where its keys can be split so far: two for each of an H200's multiprocessors
_MAX_SPLITS = 32
_LOG2_E = 1.4426950408889634
_ROPE_HEADS = 8


@dataclass(frozen=True)
class PrefillBlock:
    """How large a program of the prefill kernel is."""

    num_queries: int
    num_keys: int
    num_warps: int
    num_stages: int


LARGE_BLOCK = PrefillBlock(128, 64, 8, 3)  # reads K and V half as often as 64 queries do
LARGE_BLOCK_BYTES = 200 << 10  # of shared memory: Hopper and later. It takes 128 KiB, but spills on an A100, with 163
SMALL_BLOCK = PrefillBlock(64, 64, 4, 2)
WIDE_BLOCK = PrefillBlock(64, 32, 8, 2)  # for rows of 256 values
FLOAT32_BLOCK = PrefillBlock(32, 16, 8, 3)  # without tensor cores: larger ones spill


@dataclass(frozen=True)
class Pages:
    """One layer's K and V: `[num_pages, num_kv_heads, BLOCK_SIZE, head_dim]` each."""

    keys: Tensor
    values: Tensor


def rope_write(
    qkv: Tensor,
    pages: Pages,
    rotary: Tensor,
    positions: Tensor,
    slots: Tensor,
    layer: AttentionLayer,
    norms: Tensor | None,
    shape: AttentionShape,
) -> Tensor:
    """Rotated queries, `[num_rows, num_heads, head_dim]`; keys and values go to their pages.

    Args:
        rotary: `[max_model_len, head_dim / 2, 2]`, float32.
        positions: `[num_rows]`, int64.
        slots: `[num_rows]`, int64; -1 = write nothing.
        norms: `[2, head_dim]`, weights for queries and keys; None = none.
    """
    num_rows = qkv.shape[0]
    query = qkv.new_empty(num_rows, shape.num_heads, shape.head_dim)
    num_programs = triton.cdiv(shape.num_heads + 2 * shape.num_kv_heads, _ROPE_HEADS)
    rope_write_kernel[(num_rows, num_programs)](
        qkv,
        query,
        pages.keys,
        pages.values,
        rotary,
        positions,
        slots,
        norms if norms is not None else qkv,
        layer.query_norm.epsilon if layer.query_norm is not None else 0.0,
        HAS_NORM=norms is not None,
        **rope_constants(shape),
    )
    return query


def decode(
    query: Tensor,
    pages: Pages,
    tables: Tensor,
    lengths: Tensor,
    shape: AttentionShape,
    window: int | None,
    out: Tensor,
    num_splits: int | None = None,
) -> None:
    """One query a row against the row's pages, split over several programs where rows are few, and merged.

    Args:
        query: `[num_rows, num_heads, head_dim]`.
        tables: `[num_rows, max_pages]`, int32.
        lengths: `[num_rows]`, int32: keys; 0 = padding, which comes out as zeros.
        out: like `query`, contiguous.
        num_splits: at most 32; None = as many as fill the GPU.
    """
    num_rows, num_heads, dim = query.shape
    num_splits = num_splits or _num_splits(num_rows * shape.num_kv_heads)
    size = (num_rows, num_heads, num_splits) if num_splits > 1 else (0, 0, 0)
    partial = torch.empty(*size, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(*size, 2, dtype=torch.float32, device=query.device)
    decode_kernel[(num_rows, shape.num_kv_heads, num_splits)](
        query,
        pages.keys,
        pages.values,
        tables,
        lengths,
        out,
        partial,
        stats,
        shape.scale * _LOG2_E,
        tables.shape[1],
        window or 0,
        IS_SPLIT=num_splits > 1,
        **decode_constants(shape, query.dtype),
    )
    if num_splits > 1:
        merge_kernel[(num_rows * num_heads,)](
            partial, stats, out, num_splits, MAX_SPLITS=_MAX_SPLITS, DIM=dim, DIM_BLOCK=_dim_block(dim), num_warps=4
        )


def prefill(
    query: Tensor,
    pages: Pages,
    tables: Tensor,
    tiles: Tensor,
    shape: AttentionShape,
    window: int | None,
    out: Tensor,
    block: PrefillBlock | None = None,
) -> None:
    """Causal attention of chunks of prompts to all that their pages hold, a tile of rows of one sequence at a time.

    Args:
        tables: `[num_sequences, max_pages]`, int32.
        tiles: from `prefill_tiles` with the block's queries, on the device.
        block: None = `prefill_block`.
    """
    block = block or prefill_block(query.dtype, shape.head_dim, query.device)
    prefill_kernel[(shape.num_heads, tiles.shape[0])](
        query,
        pages.keys,
        pages.values,
        out,
        tables,
        tiles,
        shape.scale * _LOG2_E,
        tables.shape[1],
        window or 0,
        **prefill_constants(shape, query.dtype, block),
    )


def prefill_tiles(chunks: list[tuple[int, int, int]], num_queries: int) -> list[tuple[int, int, int, int]]:
    """(sequence, first row, its position, rows) of every tile, from each chunk's (first row, position, rows).

    Tiles with the most keys come first: what is launched last ends last, and should be short.
    """
    tiles = [
        (sequence, first_row + start, position + start, min(num_queries, num_rows - start))
        for sequence, (first_row, position, num_rows) in enumerate(chunks)
        for start in range(0, num_rows, num_queries)
    ]
    return sorted(tiles, key=lambda tile: tile[2] + tile[3], reverse=True)


def prefill_block(dtype: torch.dtype, head_dim: int, device: torch.device) -> PrefillBlock:
    """The largest that spills no registers and fits the device's shared memory; a test compiles them."""
    if is_interpreted():
        return SMALL_BLOCK
    if dtype == torch.float32:
        return FLOAT32_BLOCK
    if head_dim > 128:
        return WIDE_BLOCK
    properties: Any = torch.cuda.get_device_properties(device)
    return LARGE_BLOCK if properties.shared_memory_per_block_optin >= LARGE_BLOCK_BYTES else SMALL_BLOCK


def rope_constants(shape: AttentionShape) -> dict[str, Any]:
    dim_block = triton.next_power_of_2(shape.head_dim)
    return {
        "NUM_HEADS": shape.num_heads,
        "NUM_KV_HEADS": shape.num_kv_heads,
        "HEADS": _ROPE_HEADS,
        "PAGE": BLOCK_SIZE,
        "DIM": shape.head_dim,
        "DIM_BLOCK": dim_block,
        "num_warps": max(_ROPE_HEADS * dim_block // 256, 1),  # 8 elements for each thread
    }


def decode_constants(shape: AttentionShape, dtype: torch.dtype) -> dict[str, Any]:
    """With three stages two turns' K and V are under way."""
    group = shape.num_heads // shape.num_kv_heads
    return {
        "GROUP_BLOCK": max(triton.next_power_of_2(group), 16),
        "KEYS": 64 if dtype != torch.float32 and shape.head_dim <= 128 else 32,
        "num_warps": 4,
        "num_stages": 3,
        **_page_constants(shape, dtype),
    }


def prefill_constants(shape: AttentionShape, dtype: torch.dtype, block: PrefillBlock) -> dict[str, Any]:
    return {
        "QUERIES": block.num_queries,
        "KEYS": block.num_keys,
        "num_warps": block.num_warps,
        "num_stages": block.num_stages,
        **_page_constants(shape, dtype),
    }


def _page_constants(shape: AttentionShape, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "GROUP": shape.num_heads // shape.num_kv_heads,
        "NUM_KV_HEADS": shape.num_kv_heads,
        "PAGE": BLOCK_SIZE,
        "DIM": shape.head_dim,
        "DIM_BLOCK": _dim_block(shape.head_dim),
        "DOT": dot_dtype(dtype),
    }


def _dim_block(head_dim: int) -> int:
    """What `tl.dot` takes."""
    return max(int(triton.next_power_of_2(head_dim)), 16)


def _num_splits(num_programs: int) -> int:
    """A power of two; it depends on the batch's size only, so that a graph serves every length."""
    limit = 2 if is_interpreted() else _MAX_SPLITS
    wanted = max(_NUM_PROGRAMS // num_programs, 1)
    return min(1 << (wanted - 1).bit_length(), limit)


def dot_dtype(dtype: torch.dtype) -> tl.dtype:
    """The interpreter multiplies float32 only."""
    if dtype == torch.float32 or is_interpreted():
        return tl.float32
    return tl.bfloat16 if dtype == torch.bfloat16 else tl.float16
