"""The Triton kernel of a matrix product with few rows, which has to read the weight and nothing else of size."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["num_rows"])
def few_rows_kernel(
    x_ptr,  # [num_rows, width]
    weight_ptr,  # [num_outputs, width]
    bias_ptr,  # [num_outputs]; read where HAS_BIAS
    out_ptr,  # [num_rows, num_outputs]
    num_rows,
    num_outputs,
    width,
    HAS_BIAS: tl.constexpr,  # noqa: N803 - constants in capitals, as Triton's own kernels have them
    ROWS: tl.constexpr,  # noqa: N803
    OUTPUTS: tl.constexpr,  # noqa: N803
    PARTS: tl.constexpr,  # noqa: N803 - of the width, one for each warp
    COLUMNS: tl.constexpr,  # noqa: N803 - of one part, at a time
    DOT: tl.constexpr,  # noqa: N803 - dtype of the product's operands
):
    """out = x weight^T + bias; a program has OUTPUTS outputs of all rows, and walks their weights.

    The weight is the left operand, so that the rows are the eight columns of the smallest tensor core product; those
    that are not there are zeros. A row is a column of its own: its bits depend on no other row, and not on num_rows.
    Each warp has every fourth piece of the width and sums of its own, added at the end: tensor cores are fast, but a
    product waits for the one that it adds to.
    """
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, PARTS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    # Behind the last output the last one is read again, and not written: a mask less in the loop.
    weights = weight_ptr + tl.minimum(outputs, num_outputs - 1).to(tl.int64)[None, :, None] * width
    values = x_ptr + rows[None, None, :] * width
    has_row = (rows < num_rows)[None, :]
    sums = tl.zeros([PARTS, OUTPUTS, ROWS], tl.float32)
    for first in range(0, width, PARTS * COLUMNS):
        places = first + columns
        inside = places < width
        weight = tl.load(weights + places[:, None, :], mask=inside[:, None, :], other=0.0)
        x = tl.load(values + places[:, :, None], mask=inside[:, :, None] & has_row[:, None, :], other=0.0)
        sums = tl.dot(weight.to(DOT), x.to(DOT), sums, input_precision="ieee")
    out = tl.sum(sums, axis=0)  # [OUTPUTS, ROWS]
    has_output = outputs < num_outputs
    if HAS_BIAS:
        out += tl.load(bias_ptr + outputs, mask=has_output, other=0.0).to(tl.float32)[:, None]
    places = rows[None, :] * num_outputs + outputs[:, None]
    tl.store(out_ptr + places, out.to(out_ptr.dtype.element_ty), mask=has_row & has_output[:, None])
