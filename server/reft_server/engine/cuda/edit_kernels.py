"""Triton kernels of the residual stream: residual add, edit and RMSNorm in one launch, and edits alone.

A row is one program that holds it whole in registers: `BLOCK` is the next power of two of its width, at most 16,384
values over 4 to 16 warps. Every sum is over one row, so a row's bits depend on no other row.

Triton compiles a kernel anew for an integer that is 1 or a multiple of 16, and for addresses that are one. What changes
with a step's rows is excepted (`do_not_specialize`), or requests would wait for a compiler.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _sigmoid(x):
    """Without an overflow on either side."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _act(x, act):
    """`ACTIVATIONS` by their number in `edit_tables.ACTS`; gelu is the exact one."""
    sigmoid = _sigmoid(x)
    y = tl.where(act == 1, tl.maximum(x, 0.0), x)
    y = tl.where(act == 2, 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476)), y)
    y = tl.where(act == 3, x * sigmoid, y)
    y = tl.where(act == 4, 2.0 * _sigmoid(2.0 * x) - 1.0, y)
    return tl.where(act == 5, sigmoid, y)


@triton.jit
def _weights(address):
    """Where float32 weights start: at a multiple of 16 bytes (`edit_tables.ALIGNMENT`), so that a load takes four."""
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _edited(x, table_ptr, entry, columns, mask, width, fields: tl.constexpr, dtype: tl.constexpr):
    """One row `x`, `[BLOCK]` in float32 that `dtype` can hold, after the edit of one table entry; -1 = no edit."""
    address = table_ptr + tl.maximum(entry, 0).to(tl.int64) * fields
    source = _weights(tl.load(address))
    source_bias = tl.load(address + 1).to(tl.pointer_type(tl.float32))
    up = _weights(tl.load(address + 2))
    target = tl.load(address + 3)
    target_bias = tl.load(address + 4)
    rank = tl.where(entry >= 0, tl.load(address + 5), 0).to(tl.int32)
    act = tl.load(address + 6)
    delta = tl.zeros_like(x)
    for k in range(rank):
        weights = tl.load(source + k * width + columns, mask=mask, other=0.0)
        up_weights = tl.load(up + k * width + columns, mask=mask, other=0.0)  # under way while the sum is taken
        coefficient = _act(tl.sum(x * weights, axis=0) + tl.load(source_bias + k), act)
        if target != 0:
            weights = tl.load(_weights(target) + k * width + columns, mask=mask, other=0.0)
            coefficient -= tl.sum(x * weights, axis=0)
        if target_bias != 0:
            coefficient -= tl.load(target_bias.to(tl.pointer_type(tl.float32)) + k)
        delta += coefficient * up_weights
    # As the torch path: the delta is rounded to the model's dtype, then added in it. -0 stays -0 where nothing edits.
    edited = (x + delta.to(dtype).to(tl.float32)).to(dtype).to(tl.float32)
    return tl.where(rank > 0, edited, x)


@triton.jit(do_not_specialize=["index_stride"], do_not_specialize_on_alignment=["index_ptr"])
def add_edit_norm_kernel(
    hidden_ptr,  # [num_rows, width], changed in place
    branch_ptr,  # [num_rows, width]; read where HAS_BRANCH
    weight_ptr,  # [width]; read where HAS_NORM
    out_ptr,  # [num_rows, width]; written where HAS_NORM
    index_ptr,  # [NUM_EDITS, index_stride], int32: a row's table entry, -1 = none
    table_ptr,  # [num_entries, fields], int64
    width,
    index_stride,
    epsilon,
    HAS_BRANCH: tl.constexpr,  # noqa: N803 - constants in capitals, as Triton's own kernels have them
    HAS_NORM: tl.constexpr,  # noqa: N803
    NUM_EDITS: tl.constexpr,  # noqa: N803
    FIELDS: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """hidden += branch; then up to NUM_EDITS edits in order; then out = norm(hidden)."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    start = row.to(tl.int64) * width
    dtype: tl.constexpr = hidden_ptr.dtype.element_ty
    x = tl.load(hidden_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
    if HAS_BRANCH:
        x += tl.load(branch_ptr + start + columns, mask=mask, other=0.0).to(tl.float32)
        x = x.to(dtype).to(tl.float32)
    for number in tl.static_range(NUM_EDITS):
        entry = tl.load(index_ptr + number * index_stride + row)
        x = _edited(x, table_ptr, entry, columns, mask, width, FIELDS, dtype)
    if HAS_BRANCH or NUM_EDITS > 0:
        tl.store(hidden_ptr + start + columns, x.to(dtype), mask=mask)
    if HAS_NORM:
        scale = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / width + epsilon)
        weight = tl.load(weight_ptr + columns, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + start + columns, (x * scale * weight).to(dtype), mask=mask)


@triton.jit
def edit_tiles_kernel(
    hidden_ptr,  # [num_rows, hidden_stride], changed in place
    rows_ptr,  # [num_tiles, ROWS], int32: rows of one edit each; -1 = none
    entries_ptr,  # [num_tiles], int32: the tile's table entry
    table_ptr,  # [num_entries, fields], int64
    width,
    hidden_stride,
    FIELDS: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    RANK: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """The edit of `ROWS` rows that share it: weights are read once for all of them.

    Two walks over the width in pieces of COLUMNS: coefficients `[ROWS, RANK]`, then `coefficients @ up`. RANK is the
    largest rank of the launch, rounded up to a power of two of at least 16, which `tl.dot` needs; rows beyond an edit's
    own rank are masked.
    """
    tile = tl.program_id(0)
    rows = tl.load(rows_ptr + tile * ROWS + tl.arange(0, ROWS))
    has_row = (rows >= 0)[:, None]
    starts = (tl.maximum(rows, 0).to(tl.int64) * hidden_stride)[:, None]
    address = table_ptr + tl.load(entries_ptr + tile).to(tl.int64) * FIELDS
    source = _weights(tl.load(address))
    source_bias = tl.load(address + 1).to(tl.pointer_type(tl.float32))
    up = _weights(tl.load(address + 2))
    target = tl.load(address + 3)
    target_bias = tl.load(address + 4)
    rank = tl.load(address + 5).to(tl.int32)
    ranks = tl.arange(0, RANK)
    has_rank = ranks < rank
    sums = tl.zeros([ROWS, RANK], tl.float32)
    subtracted = tl.zeros([ROWS, RANK], tl.float32)
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < width
        x = tl.load(hidden_ptr + starts + columns[None, :], mask=has_row & inside[None, :], other=0.0).to(tl.float32)
        places = ranks[None, :] * width + columns[:, None]  # [COLUMNS, RANK]
        visible = has_rank[None, :] & inside[:, None]
        sums += tl.dot(x, tl.load(source + places, mask=visible, other=0.0), input_precision="ieee")
        if target != 0:
            weights = tl.load(_weights(target) + places, mask=visible, other=0.0)
            subtracted += tl.dot(x, weights, input_precision="ieee")
    coefficients = _act(sums + tl.load(source_bias + ranks, mask=has_rank, other=0.0)[None, :], tl.load(address + 6))
    coefficients -= subtracted
    if target_bias != 0:
        bias = target_bias.to(tl.pointer_type(tl.float32))
        coefficients -= tl.load(bias + ranks, mask=has_rank, other=0.0)[None, :]
    for first in range(0, width, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        inside = columns < width
        weights = tl.load(
            up + ranks[:, None] * width + columns[None, :], mask=has_rank[:, None] & inside[None, :], other=0.0
        )
        delta = tl.dot(coefficients, weights, input_precision="ieee")
        places = hidden_ptr + starts + columns[None, :]
        visible = has_row & inside[None, :]
        x = tl.load(places, mask=visible, other=0.0)
        edited = x.to(tl.float32) + delta.to(x.dtype).to(tl.float32)
        tl.store(places, edited.to(x.dtype), mask=visible)


@triton.jit
def silu_mul_kernel(
    gate_up_ptr,  # [num_rows, 2 * width]
    out_ptr,  # [num_rows, width]
    width,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """out = silu(gate) * up; silu is rounded to the model's dtype in between, as the torch path does."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < width
    gate = tl.load(gate_up_ptr + row * 2 * width + columns, mask=mask, other=0.0)
    up = tl.load(gate_up_ptr + row * 2 * width + width + columns, mask=mask, other=0.0)
    x = gate.to(tl.float32)
    activation = (x * _sigmoid(x)).to(gate.dtype).to(tl.float32)
    tl.store(out_ptr + row * width + columns, (activation * up.to(tl.float32)).to(gate.dtype), mask=mask)
