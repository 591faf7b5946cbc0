"""The kernels as functions of tensors: shapes are checked by their callers, grids and blocks chosen here."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from reft_server.engine.kernels import AttentionLayer, AttentionShape, Norm
from reft_server.engine.kv_memory import BLOCK_SIZE

from .attention_kernels import decode_kernel, merge_kernel, prefill_kernel, rope_write_kernel
from .edit_kernels import add_edit_norm_kernel, edit_tiles_kernel, silu_mul_kernel
from .edit_tables import NUM_FIELDS, TILE_ROWS, EditTables, RowEdits, TileEdits

_NUM_PROGRAMS = 264  # of a decode launch, where its keys can be split so far: two for each of an H200's multiprocessors
_MAX_SPLITS = 16
_LOG2_E = 1.4426950408889634
_KEYS = 64
_QUERIES = 64


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def add_edit_norm(
    hidden: Tensor, branch: Tensor | None, norm: Norm | None, tables: EditTables | None, edits: RowEdits | None
) -> Tensor | None:
    """`hidden += branch`, edits, and the norm of the result if there is a norm; `hidden` changes in place.

    Args:
        hidden: `[num_rows, width]`, contiguous.
    """
    num_rows, width = hidden.shape
    block = triton.next_power_of_2(width)
    out = torch.empty_like(hidden) if norm is not None else None
    has_edits = tables is not None and edits is not None
    index = tables.index[edits.first :] if tables is not None and edits is not None else hidden
    add_edit_norm_kernel[(num_rows,)](
        hidden,
        branch if branch is not None else hidden,
        norm.weight if norm is not None else hidden,
        out if out is not None else hidden,
        index,
        tables.table if tables is not None else hidden,
        width,
        tables.index.shape[1] if tables is not None else 0,
        norm.epsilon if norm is not None else 0.0,
        HAS_BRANCH=branch is not None,
        HAS_NORM=norm is not None,
        NUM_EDITS=edits.num_levels if has_edits and edits is not None else 0,
        FIELDS=NUM_FIELDS,
        BLOCK=block,
        num_warps=min(max(block // 512, 4), 16),
    )
    return out


def edit_tiles(rows: Tensor, tables: EditTables, edits: TileEdits) -> None:
    """Edits of `rows`, `[num_rows, width]` with contiguous columns, in place."""
    edit_tiles_kernel[(edits.entries.shape[0],)](
        rows,
        edits.rows,
        edits.entries,
        tables.table,
        rows.shape[1],
        rows.stride(0),
        FIELDS=NUM_FIELDS,
        ROWS=TILE_ROWS,
        RANK=max(triton.next_power_of_2(edits.largest_rank), 16),
        COLUMNS=64,
        num_warps=4,
    )


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, `[num_rows, width]` from `[num_rows, 2 * width]`."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    block = min(triton.next_power_of_2(width), 2048)
    silu_mul_kernel[(num_rows, triton.cdiv(width, block))](gate_up, out, width, BLOCK=block, num_warps=4)
    return out


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
    rope_write_kernel[(num_rows, shape.num_heads + 2 * shape.num_kv_heads)](
        qkv,
        query,
        pages.keys,
        pages.values,
        rotary,
        positions,
        slots,
        norms if norms is not None else qkv,
        shape.num_heads,
        shape.num_kv_heads,
        layer.query_norm.epsilon if layer.query_norm is not None else 0.0,
        HAS_NORM=norms is not None,
        PAGE=BLOCK_SIZE,
        DIM=shape.head_dim,
        HALF=triton.next_power_of_2(shape.head_dim // 2),
        num_warps=1,
    )
    return query


def decode(
    query: Tensor, pages: Pages, tables: Tensor, lengths: Tensor, shape: AttentionShape, window: int | None, out: Tensor
) -> None:
    """One query a row against the row's pages, split over several programs where rows are few, and merged.

    Args:
        query: `[num_rows, num_heads, head_dim]`.
        tables: `[num_rows, max_pages]`, int32.
        lengths: `[num_rows]`, int32: keys; 0 = padding, which comes out as zeros.
        out: like `query`, contiguous.
    """
    num_rows, num_heads, dim = query.shape
    num_splits = _num_splits(num_rows * shape.num_kv_heads)
    partial = torch.empty(num_rows, num_heads, num_splits, dim, dtype=torch.float32, device=query.device)
    stats = torch.empty(num_rows, num_heads, num_splits, 2, dtype=torch.float32, device=query.device)
    group = num_heads // shape.num_kv_heads
    dim_block = max(triton.next_power_of_2(dim), 16)
    decode_kernel[(num_rows, shape.num_kv_heads, num_splits)](
        query,
        pages.keys,
        pages.values,
        tables,
        lengths,
        partial,
        stats,
        shape.scale * _LOG2_E,
        shape.num_kv_heads,
        tables.shape[1],
        window or 0,
        GROUP=group,
        GROUP_BLOCK=max(triton.next_power_of_2(group), 16),
        PAGE=BLOCK_SIZE,
        KEYS=_KEYS,
        DIM=dim,
        DIM_BLOCK=dim_block,
        DOT=_dot_dtype(query),
        num_warps=4,
        num_stages=2,
    )
    merge_kernel[(num_rows * num_heads,)](
        partial, stats, out, NUM_SPLITS=num_splits, DIM=dim, DIM_BLOCK=dim_block, num_warps=1
    )


def prefill(
    query: Tensor,
    pages: Pages,
    tables: Tensor,
    tiles: Tensor,
    shape: AttentionShape,
    window: int | None,
    out: Tensor,
) -> None:
    """Causal attention of chunks of prompts to all that their pages hold, `QUERIES` rows of one sequence at a time.

    Args:
        tables: `[num_sequences, max_pages]`, int32.
        tiles: from `prefill_tiles`, on the device.
    """
    dim = query.shape[2]
    prefill_kernel[(shape.num_heads, tiles.shape[0])](
        query,
        pages.keys,
        pages.values,
        out,
        tables,
        tiles,
        shape.scale * _LOG2_E,
        shape.num_kv_heads,
        tables.shape[1],
        window or 0,
        GROUP=shape.num_heads // shape.num_kv_heads,
        PAGE=BLOCK_SIZE,
        QUERIES=_QUERIES,
        KEYS=_KEYS,
        DIM=dim,
        DIM_BLOCK=max(triton.next_power_of_2(dim), 16),
        DOT=_dot_dtype(query),
        num_warps=4,
        num_stages=2,
    )


def prefill_tiles(chunks: list[tuple[int, int, int]]) -> list[tuple[int, int, int, int]]:
    """(sequence, first row, its position, rows) of every tile, from each chunk's (first row, position, rows)."""
    return [
        (sequence, first_row + start, position + start, min(_QUERIES, num_rows - start))
        for sequence, (first_row, position, num_rows) in enumerate(chunks)
        for start in range(0, num_rows, _QUERIES)
    ]


def _num_splits(num_programs: int) -> int:
    """A power of two; it depends on the batch's size only, so that a graph serves every length."""
    limit = 2 if is_interpreted() else _MAX_SPLITS
    wanted = max(_NUM_PROGRAMS // num_programs, 1)
    return min(1 << (wanted - 1).bit_length(), limit)


def _dot_dtype(query: Tensor) -> tl.dtype:
    """The interpreter multiplies float32 only."""
    if query.dtype == torch.float32 or is_interpreted():
        return tl.float32
    return tl.bfloat16 if query.dtype == torch.bfloat16 else tl.float16
