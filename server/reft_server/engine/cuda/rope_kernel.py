"""The Triton kernel before attention: norms of queries and keys, rope, and K and V written to their pages."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rope_write_kernel(
    qkv_ptr,  # [num_rows, (NUM_HEADS + 2 * NUM_KV_HEADS) * DIM]; pairs of rotary columns adjacent
    query_ptr,  # out: [num_rows, NUM_HEADS, DIM]
    keys_ptr,  # pages, written
    values_ptr,  # pages, written
    rotary_ptr,  # [max_model_len, DIM / 2, 2], float32: cos and sin
    positions_ptr,  # [num_rows], int64
    slots_ptr,  # [num_rows], int64: page * PAGE + offset; -1 = write nothing
    norms_ptr,  # [2, DIM], of queries and of keys; read where HAS_NORM
    epsilon,
    HAS_NORM: tl.constexpr,  # noqa: N803 - constants in capitals, as Triton's own kernels have them
    NUM_HEADS: tl.constexpr,  # noqa: N803
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803
    HEADS: tl.constexpr,  # noqa: N803 - of one program
    PAGE: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803 - DIM rounded up to a power of two
):
    """One program per row and HEADS heads: rotate queries and keys (after their norms), and pass values on.

    Heads are read and written as they lie, and taken apart into pairs in registers.
    """
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, DIM_BLOCK)
    is_query = (heads < NUM_HEADS)[:, None]
    is_rotated = (heads < NUM_HEADS + NUM_KV_HEADS)[:, None]
    inside = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & (dims < DIM)[None, :]
    cells = heads[:, None] * DIM + dims[None, :]
    qkv = tl.load(qkv_ptr + row * ((NUM_HEADS + 2 * NUM_KV_HEADS) * DIM) + cells, mask=inside, other=0.0)
    dtype: tl.constexpr = qkv_ptr.dtype.element_ty
    even, odd = tl.split(tl.reshape(qkv.to(tl.float32), (HEADS, DIM_BLOCK // 2, 2)))
    if HAS_NORM:
        squares = tl.sum(even * even, axis=1) + tl.sum(odd * odd, axis=1)
        scale = (1.0 / tl.sqrt(squares / DIM + epsilon))[:, None]
        weights = tl.load(norms_ptr + tl.where(is_query, 0, DIM) + dims[None, :], mask=(dims < DIM)[None, :], other=0.0)
        even_weights, odd_weights = tl.split(tl.reshape(weights.to(tl.float32), (HEADS, DIM_BLOCK // 2, 2)))
        even = tl.where(is_rotated, (even * scale * even_weights).to(dtype).to(tl.float32), even)
        odd = tl.where(is_rotated, (odd * scale * odd_weights).to(dtype).to(tl.float32), odd)
    angles = tl.load(rotary_ptr + tl.load(positions_ptr + row) * DIM + dims, mask=dims < DIM, other=0.0)
    cos, sin = tl.split(tl.reshape(angles, (DIM_BLOCK // 2, 2)))
    rotated_even = tl.where(is_rotated, even * cos[None, :] - odd * sin[None, :], even)
    rotated_odd = tl.where(is_rotated, even * sin[None, :] + odd * cos[None, :], odd)
    out = tl.reshape(tl.join(rotated_even, rotated_odd), (HEADS, DIM_BLOCK)).to(dtype)
    tl.store(query_ptr + row * (NUM_HEADS * DIM) + cells, out, mask=inside & is_query)
    slot = tl.load(slots_ptr + row)
    page = ((slot // PAGE) * NUM_KV_HEADS - NUM_HEADS) * (PAGE * DIM) + (slot % PAGE) * DIM
    places = page + heads[:, None] * (PAGE * DIM) + dims[None, :]
    is_written = inside & (slot >= 0)
    tl.store(keys_ptr + places, out, mask=is_written & is_rotated & (heads >= NUM_HEADS)[:, None])
    tl.store(
        values_ptr + places - NUM_KV_HEADS * PAGE * DIM,
        out,
        mask=is_written & (heads >= NUM_HEADS + NUM_KV_HEADS)[:, None],
    )
