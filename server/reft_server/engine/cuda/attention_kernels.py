"""Triton kernels of attention over paged K and V: rope with the KV write, decode split over keys, prefill.

Pages are `[num_pages, num_kv_heads, PAGE, head_dim]`; a sequence's block table lists its pages in order. What lies
behind a mask is never read, so stale or non-finite values in a page can't spread. Queries of a KV head's group are
handled together: K and V are read once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rope_write_kernel(
    qkv_ptr,  # [num_rows, (num_heads + 2 * num_kv_heads) * DIM]; pairs of rotary columns adjacent
    query_ptr,  # out: [num_rows, num_heads, DIM]
    keys_ptr,  # pages, written
    values_ptr,  # pages, written
    rotary_ptr,  # [max_model_len, DIM / 2, 2], float32: cos and sin
    positions_ptr,  # [num_rows], int64
    slots_ptr,  # [num_rows], int64: page * PAGE + offset; -1 = write nothing
    norms_ptr,  # [2, DIM], of queries and of keys; read where HAS_NORM
    num_heads,
    num_kv_heads,
    epsilon,
    HAS_NORM: tl.constexpr,  # noqa: N803 - constants in capitals, as Triton's own kernels have them
    PAGE: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803 - DIM / 2 rounded up to a power of two
):
    """One program per row and head: rotate a query or a key (after its norm), or pass a value on."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    pairs = tl.arange(0, HALF)
    mask = pairs < DIM // 2
    start = (row * (num_heads + 2 * num_kv_heads) + head) * DIM
    even = tl.load(qkv_ptr + start + 2 * pairs, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(qkv_ptr + start + 2 * pairs + 1, mask=mask, other=0.0).to(tl.float32)
    is_query = head < num_heads
    if head < num_heads + num_kv_heads:
        if HAS_NORM:
            dtype: tl.constexpr = qkv_ptr.dtype.element_ty
            scale = 1.0 / tl.sqrt((tl.sum(even * even, axis=0) + tl.sum(odd * odd, axis=0)) / DIM + epsilon)
            weight = norms_ptr + tl.where(is_query, 0, DIM)
            even = (even * scale * tl.load(weight + 2 * pairs, mask=mask, other=0.0).to(tl.float32)).to(dtype)
            odd = (odd * scale * tl.load(weight + 2 * pairs + 1, mask=mask, other=0.0).to(tl.float32)).to(dtype)
            even = even.to(tl.float32)
            odd = odd.to(tl.float32)
        angle = tl.load(positions_ptr + row) * DIM
        cos = tl.load(rotary_ptr + angle + 2 * pairs, mask=mask, other=0.0)
        sin = tl.load(rotary_ptr + angle + 2 * pairs + 1, mask=mask, other=0.0)
        rotated = even * cos - odd * sin
        odd = even * sin + odd * cos
        even = rotated
    if is_query:
        out = query_ptr + (row * num_heads + head) * DIM
        tl.store(out + 2 * pairs, even.to(query_ptr.dtype.element_ty), mask=mask)
        tl.store(out + 2 * pairs + 1, odd.to(query_ptr.dtype.element_ty), mask=mask)
    else:
        slot = tl.load(slots_ptr + row)
        if slot >= 0:
            is_key = head < num_heads + num_kv_heads
            kv_head = tl.where(is_key, head - num_heads, head - num_heads - num_kv_heads)
            place = ((slot // PAGE) * num_kv_heads + kv_head) * (PAGE * DIM) + (slot % PAGE) * DIM
            if is_key:
                tl.store(keys_ptr + place + 2 * pairs, even.to(keys_ptr.dtype.element_ty), mask=mask)
                tl.store(keys_ptr + place + 2 * pairs + 1, odd.to(keys_ptr.dtype.element_ty), mask=mask)
            else:
                tl.store(values_ptr + place + 2 * pairs, even.to(values_ptr.dtype.element_ty), mask=mask)
                tl.store(values_ptr + place + 2 * pairs + 1, odd.to(values_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["max_pages"], do_not_specialize_on_alignment=["tables_ptr"])
def decode_kernel(
    query_ptr,  # [num_rows, num_heads, DIM]
    keys_ptr,  # pages
    values_ptr,  # pages
    tables_ptr,  # [num_rows, max_pages], int32
    lengths_ptr,  # [num_rows], int32: keys of a row; 0 = padding
    partial_ptr,  # out: [num_rows, num_heads, num_splits, DIM], float32
    stats_ptr,  # out: [num_rows, num_heads, num_splits, 2], float32: largest score, sum of exponentials
    scale,  # of the scores, times log2(e)
    num_kv_heads,
    max_pages,
    window,  # 0 = none
    GROUP: tl.constexpr,  # noqa: N803 - query heads of a KV head
    GROUP_BLOCK: tl.constexpr,  # noqa: N803 - GROUP rounded up to at least 16, which `tl.dot` needs
    PAGE: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803 - keys of one turn of the loop
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
    DOT: tl.constexpr,  # noqa: N803 - dtype of the products' operands
):
    """One program per row, KV head and split: the split's share of the row's keys, in turns of KEYS.

    The number of splits does not depend on the row, so the same graph serves every length; a split beyond a row's keys
    leaves at once with sum 0.
    """
    row = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    num_splits = tl.num_programs(2)
    length = tl.load(lengths_ptr + row)
    begin = 0
    if window > 0:
        begin = tl.maximum(length - window, 0) // KEYS * KEYS
    turns = (length - begin + KEYS - 1) // KEYS
    share = (turns + num_splits - 1) // num_splits
    first = begin + split * share * KEYS
    last = tl.minimum(first + share * KEYS, length)
    members = tl.arange(0, GROUP_BLOCK)
    dims = tl.arange(0, DIM_BLOCK)
    heads = kv_head * GROUP + members
    inside = (members < GROUP)[:, None] & (dims < DIM)[None, :]
    num_heads = num_kv_heads * GROUP
    query = tl.load(query_ptr + (row * num_heads + heads)[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
    largest = tl.full([GROUP_BLOCK], -1.0e30, tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    out = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
    for start in range(first, last, KEYS):
        places = start + tl.arange(0, KEYS)
        exists = places < last
        pages = tl.load(tables_ptr + row * max_pages + places // PAGE, mask=exists, other=0).to(tl.int64)
        offsets = (pages * num_kv_heads + kv_head) * (PAGE * DIM) + (places % PAGE) * DIM
        shown = exists[:, None] & (dims < DIM)[None, :]
        keys = tl.load(keys_ptr + offsets[:, None] + dims[None, :], mask=shown, other=0.0)  # [KEYS, DIM_BLOCK]
        values = tl.load(values_ptr + offsets[:, None] + dims[None, :], mask=shown, other=0.0)
        scores = tl.dot(query.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee") * scale
        visible = exists
        if window > 0:
            visible = exists & (places >= length - window)
        scores = tl.where(visible[None, :], scores, -1.0e30)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.where(visible[None, :], tl.exp2(scores - new_largest[:, None]), 0.0)
        fade = tl.exp2(largest - new_largest)
        total = total * fade + tl.sum(weights, axis=1)
        # As torch's fused attention: weights are rounded to the values' dtype for the product.
        weighted = tl.dot(weights.to(values.dtype).to(DOT), values.to(DOT), input_precision="ieee")
        out = out * fade[:, None] + weighted
        largest = new_largest
    places = (row * num_heads + heads) * num_splits + split
    tl.store(partial_ptr + places[:, None] * DIM + dims[None, :], out, mask=inside)
    tl.store(stats_ptr + places * 2, largest, mask=members < GROUP)
    tl.store(stats_ptr + places * 2 + 1, total, mask=members < GROUP)


@triton.jit
def merge_kernel(
    partial_ptr,  # [num_rows, num_heads, NUM_SPLITS, DIM], float32
    stats_ptr,  # [num_rows, num_heads, NUM_SPLITS, 2], float32
    out_ptr,  # [num_rows, num_heads, DIM]
    NUM_SPLITS: tl.constexpr,  # noqa: N803 - a power of two
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
):
    """One program per row and head: the splits' sums brought to one scale. A row without keys comes out as zeros."""
    place = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, NUM_SPLITS)
    dims = tl.arange(0, DIM_BLOCK)
    largest = tl.load(stats_ptr + (place * NUM_SPLITS + splits) * 2)
    totals = tl.load(stats_ptr + (place * NUM_SPLITS + splits) * 2 + 1)
    weights = tl.exp2(largest - tl.max(largest, axis=0))
    total = tl.sum(weights * totals, axis=0)
    parts = tl.load(
        partial_ptr + (place * NUM_SPLITS + splits)[:, None] * DIM + dims[None, :],
        mask=(dims < DIM)[None, :],
        other=0.0,
    )
    merged = tl.sum(parts * weights[:, None], axis=0) / tl.where(total > 0.0, total, 1.0)
    tl.store(out_ptr + place * DIM + dims, merged.to(out_ptr.dtype.element_ty), mask=dims < DIM)


@triton.jit(do_not_specialize=["max_pages"], do_not_specialize_on_alignment=["tables_ptr"])
def prefill_kernel(
    query_ptr,  # [num_rows, num_heads, DIM]
    keys_ptr,  # pages
    values_ptr,  # pages
    out_ptr,  # [num_rows, num_heads, DIM]
    tables_ptr,  # [num_sequences, max_pages], int32
    tiles_ptr,  # [num_tiles, 4], int32: sequence, first row of the tile, its position, rows
    scale,  # of the scores, times log2(e)
    num_kv_heads,
    max_pages,
    window,  # 0 = none
    GROUP: tl.constexpr,  # noqa: N803 - query heads of a KV head
    PAGE: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
    DOT: tl.constexpr,  # noqa: N803 - dtype of the products' operands
):
    """One program per tile of QUERIES rows of one sequence, and query head: causal attention to all keys so far."""
    head = tl.program_id(0)
    tile = tl.program_id(1)
    sequence = tl.load(tiles_ptr + tile * 4).to(tl.int64)
    first_row = tl.load(tiles_ptr + tile * 4 + 1).to(tl.int64)
    first_position = tl.load(tiles_ptr + tile * 4 + 2)
    num_rows = tl.load(tiles_ptr + tile * 4 + 3)
    kv_head = head // GROUP
    num_heads = num_kv_heads * GROUP
    members = tl.arange(0, QUERIES)
    dims = tl.arange(0, DIM_BLOCK)
    positions = first_position + members
    inside = (members < num_rows)[:, None] & (dims < DIM)[None, :]
    rows = ((first_row + members) * num_heads + head) * DIM
    query = tl.load(query_ptr + rows[:, None] + dims[None, :], mask=inside, other=0.0)
    largest = tl.full([QUERIES], -1.0e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, DIM_BLOCK], tl.float32)
    length = first_position + num_rows
    begin = 0
    if window > 0:
        begin = tl.maximum(first_position + 1 - window, 0) // KEYS * KEYS
    for start in range(begin, length, KEYS):
        places = start + tl.arange(0, KEYS)
        exists = places < length
        pages = tl.load(tables_ptr + sequence * max_pages + places // PAGE, mask=exists, other=0).to(tl.int64)
        offsets = (pages * num_kv_heads + kv_head) * (PAGE * DIM) + (places % PAGE) * DIM
        shown = exists[:, None] & (dims < DIM)[None, :]
        keys = tl.load(keys_ptr + offsets[:, None] + dims[None, :], mask=shown, other=0.0)  # [KEYS, DIM_BLOCK]
        values = tl.load(values_ptr + offsets[:, None] + dims[None, :], mask=shown, other=0.0)
        scores = tl.dot(query.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee") * scale
        visible = exists[None, :] & (places[None, :] <= positions[:, None])
        if window > 0:
            visible = visible & (places[None, :] > positions[:, None] - window)
        scores = tl.where(visible, scores, -1.0e30)
        new_largest = tl.maximum(largest, tl.max(scores, axis=1))
        weights = tl.where(visible, tl.exp2(scores - new_largest[:, None]), 0.0)
        fade = tl.exp2(largest - new_largest)
        total = total * fade + tl.sum(weights, axis=1)
        weighted = tl.dot(weights.to(values.dtype).to(DOT), values.to(DOT), input_precision="ieee")
        out = out * fade[:, None] + weighted
        largest = new_largest
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + rows[:, None] + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
