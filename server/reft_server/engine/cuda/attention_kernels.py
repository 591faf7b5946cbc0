"""Triton kernels of attention over paged K and V: decode split over keys, prefill.

Pages are `[num_pages, num_kv_heads, PAGE, head_dim]`; a sequence's block table lists its pages in order. What lies
behind a mask is never read, so stale or non-finite values in a page can't spread. Queries of a KV head's group are
handled together: K and V are read once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _pages(table_ptr, places, length, PAGE: tl.constexpr):  # noqa: N803
    """The pages of positions; 0 behind the last key, where nothing is read.

    They are asked for one turn ahead: in their own turn the compiler would take them through shared memory, each thread
    its own copy, and K and V would wait for them.
    """
    return tl.load(table_ptr + places // PAGE, mask=places < length, other=0)


@triton.jit
def _attend_to(
    query,  # [ROWS, DIM_BLOCK]
    pages,  # [KEYS], int32: of the keys
    places,  # [KEYS]: their positions
    exists,  # [KEYS]: whether they may be read; used where MASKED
    visible,  # [ROWS, KEYS] or what broadcasts to it; used where MASKED
    keys_ptr,
    values_ptr,
    kv_head,
    scale,
    largest,  # [ROWS]: largest score so far, times log2(e)
    total,  # [ROWS]: sum of exponentials so far
    out,  # [ROWS, DIM_BLOCK], float32: sum of values so far
    MASKED: tl.constexpr,  # noqa: N803 - False: all places exist and are visible to all rows
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
    DOT: tl.constexpr,  # noqa: N803 - dtype of the products' operands
):
    """One turn of the online softmax: KEYS keys and their values. Gives `largest, total, out`."""
    dims = tl.arange(0, DIM_BLOCK)
    offsets = (pages.to(tl.int64) * NUM_KV_HEADS + kv_head) * (PAGE * DIM) + (places % PAGE) * DIM
    cells = offsets[:, None] + dims[None, :]
    if MASKED:
        shown = exists[:, None] & (dims < DIM)[None, :]
        keys = tl.load(keys_ptr + cells, mask=shown, other=0.0)  # [KEYS, DIM_BLOCK]
        values = tl.load(values_ptr + cells, mask=shown, other=0.0)
    elif DIM == DIM_BLOCK:
        keys = tl.load(keys_ptr + cells)
        values = tl.load(values_ptr + cells)
    else:
        keys = tl.load(keys_ptr + cells, mask=(dims < DIM)[None, :], other=0.0)
        values = tl.load(values_ptr + cells, mask=(dims < DIM)[None, :], other=0.0)
    scores = tl.dot(query.to(DOT), tl.trans(keys.to(DOT)), input_precision="ieee")
    if MASKED:
        scores = tl.where(visible, scores, -1.0e30)
    new_largest = tl.maximum(largest, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_largest[:, None])
    if MASKED:
        weights = tl.where(visible, weights, 0.0)
    fade = tl.exp2(largest - new_largest)
    # As torch's fused attention: weights are rounded to the values' dtype for the product.
    out = tl.dot(weights.to(values.dtype).to(DOT), values.to(DOT), out * fade[:, None], input_precision="ieee")
    return new_largest, total * fade + tl.sum(weights, axis=1), out


@triton.jit(do_not_specialize=["max_pages"], do_not_specialize_on_alignment=["tables_ptr"])
def decode_kernel(
    query_ptr,  # [num_rows, num_heads, DIM]
    keys_ptr,  # pages
    values_ptr,  # pages
    tables_ptr,  # [num_rows, max_pages], int32
    lengths_ptr,  # [num_rows], int32: keys of a row; 0 = padding
    out_ptr,  # out: [num_rows, num_heads, DIM]; the next two are written instead where IS_SPLIT
    partial_ptr,  # out: [num_rows, num_heads, num_splits, DIM], float32; nothing where a split has no keys
    stats_ptr,  # out: [num_rows, num_heads, num_splits, 2], float32: largest score, sum of exponentials
    scale,  # of the scores, times log2(e)
    max_pages,
    window,  # 0 = none
    IS_SPLIT: tl.constexpr,  # noqa: N803 - False: there is one split
    GROUP: tl.constexpr,  # noqa: N803 - query heads of a KV head
    GROUP_BLOCK: tl.constexpr,  # noqa: N803 - GROUP rounded up to at least 16, which `tl.dot` needs
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803
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
    heads = row * (NUM_KV_HEADS * GROUP) + kv_head * GROUP + members
    inside = (members < GROUP)[:, None] & (dims < DIM)[None, :]
    query = tl.load(query_ptr + heads[:, None] * DIM + dims[None, :], mask=inside, other=0.0)
    largest = tl.full([GROUP_BLOCK], -1.0e30, tl.float32)
    total = tl.zeros([GROUP_BLOCK], tl.float32)
    out = tl.zeros([GROUP_BLOCK, DIM_BLOCK], tl.float32)
    table_ptr = tables_ptr + row * max_pages
    pages = _pages(table_ptr, first + tl.arange(0, KEYS), last, PAGE)
    for start in range(first, last, KEYS):
        places = start + tl.arange(0, KEYS)
        next_pages = _pages(table_ptr, places + KEYS, last, PAGE)
        exists = places < last
        visible = exists
        if window > 0:
            visible = exists & (places >= length - window)
        largest, total, out = _attend_to(
            query,
            pages,
            places,
            exists,
            visible[None, :],
            keys_ptr,
            values_ptr,
            kv_head,
            scale,
            largest,
            total,
            out,
            True,
            NUM_KV_HEADS,
            PAGE,
            DIM,
            DIM_BLOCK,
            DOT,
        )
        pages = next_pages
    if IS_SPLIT:
        places = heads * num_splits + split
        tl.store(partial_ptr + places[:, None] * DIM + dims[None, :], out, mask=inside & (first < last))
        tl.store(stats_ptr + places * 2, largest, mask=members < GROUP)
        tl.store(stats_ptr + places * 2 + 1, total, mask=members < GROUP)
    else:
        out = out / tl.where(total > 0.0, total, 1.0)[:, None]
        tl.store(out_ptr + heads[:, None] * DIM + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_splits"])
def merge_kernel(
    partial_ptr,  # [num_rows, num_heads, num_splits, DIM], float32
    stats_ptr,  # [num_rows, num_heads, num_splits, 2], float32
    out_ptr,  # [num_rows, num_heads, DIM]
    num_splits,
    MAX_SPLITS: tl.constexpr,  # noqa: N803 - a power of two
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
):
    """One program per row and head: the splits' sums brought to one scale. A row without keys comes out as zeros."""
    place = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, MAX_SPLITS)
    dims = tl.arange(0, DIM_BLOCK)
    places = place * num_splits + splits
    is_split = splits < num_splits
    largest = tl.load(stats_ptr + places * 2, mask=is_split, other=-1.0e30)
    totals = tl.load(stats_ptr + places * 2 + 1, mask=is_split, other=0.0)
    weights = tl.exp2(largest - tl.max(largest, axis=0))
    total = tl.sum(weights * totals, axis=0)
    parts = tl.load(
        partial_ptr + places[:, None] * DIM + dims[None, :],
        mask=(totals > 0.0)[:, None] & (dims < DIM)[None, :],
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
    max_pages,
    window,  # 0 = none
    GROUP: tl.constexpr,  # noqa: N803 - query heads of a KV head
    NUM_KV_HEADS: tl.constexpr,  # noqa: N803
    PAGE: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr,  # noqa: N803
    KEYS: tl.constexpr,  # noqa: N803
    DIM: tl.constexpr,  # noqa: N803
    DIM_BLOCK: tl.constexpr,  # noqa: N803
    DOT: tl.constexpr,  # noqa: N803 - dtype of the products' operands
):
    """One program per tile of QUERIES rows of one sequence, and query head: causal attention to all keys so far.

    First in turns of KEYS that all rows of the tile see, without a mask; then in those that some rows don't.
    """
    head = tl.program_id(0)
    tile = tl.program_id(1)
    sequence = tl.load(tiles_ptr + tile * 4).to(tl.int64)
    first_row = tl.load(tiles_ptr + tile * 4 + 1).to(tl.int64)
    first_position = tl.load(tiles_ptr + tile * 4 + 2)
    num_rows = tl.load(tiles_ptr + tile * 4 + 3)
    kv_head = head // GROUP
    members = tl.arange(0, QUERIES)
    dims = tl.arange(0, DIM_BLOCK)
    positions = first_position + members
    inside = (members < num_rows)[:, None] & (dims < DIM)[None, :]
    rows = ((first_row + members) * (NUM_KV_HEADS * GROUP) + head) * DIM
    query = tl.load(query_ptr + rows[:, None] + dims[None, :], mask=inside, other=0.0)
    largest = tl.full([QUERIES], -1.0e30, tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    out = tl.zeros([QUERIES, DIM_BLOCK], tl.float32)
    table_ptr = tables_ptr + sequence * max_pages
    length = first_position + num_rows
    begin = 0
    full = (first_position + 1) // KEYS * KEYS
    if window > 0:
        begin = tl.maximum(first_position + 1 - window, 0) // KEYS * KEYS
        full = begin
    pages = _pages(table_ptr, begin + tl.arange(0, KEYS), length, PAGE)
    for start in range(begin, full, KEYS):
        places = start + tl.arange(0, KEYS)
        next_pages = _pages(table_ptr, places + KEYS, length, PAGE)
        largest, total, out = _attend_to(
            query,
            pages,
            places,
            places,
            places,
            keys_ptr,
            values_ptr,
            kv_head,
            scale,
            largest,
            total,
            out,
            False,
            NUM_KV_HEADS,
            PAGE,
            DIM,
            DIM_BLOCK,
            DOT,
        )
        pages = next_pages
    for start in range(full, length, KEYS):
        places = start + tl.arange(0, KEYS)
        next_pages = _pages(table_ptr, places + KEYS, length, PAGE)
        exists = places < length
        visible = exists[None, :] & (places[None, :] <= positions[:, None])
        if window > 0:
            visible = visible & (places[None, :] > positions[:, None] - window)
        largest, total, out = _attend_to(
            query,
            pages,
            places,
            exists,
            visible,
            keys_ptr,
            values_ptr,
            kv_head,
            scale,
            largest,
            total,
            out,
            True,
            NUM_KV_HEADS,
            PAGE,
            DIM,
            DIM_BLOCK,
            DOT,
        )
        pages = next_pages
    out = out / tl.where(total > 0.0, total, 1.0)[:, None]
    tl.store(out_ptr + rows[:, None] + dims[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)
