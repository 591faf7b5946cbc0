"""The kernels of edits as functions of tensors: shapes are checked by their callers, grids and blocks chosen here."""

from __future__ import annotations

import os

import torch
import triton
from torch import Tensor

from reft_server.engine.kernels import Norm

from .edit_kernels import add_edit_norm_kernel, edit_tiles_kernel, silu_mul_kernel
from .edit_tables import NUM_FIELDS, TILE_ROWS, EditTables, RowEdits, TileEdits


class KernelsUnavailableError(Exception):
    """Triton can't compile or launch here; the message says why."""


def check_launch(device: torch.device) -> None:
    """Launch the smallest kernel: that takes a C compiler, Python's headers and a GPU that Triton knows.

    Raises:
        KernelsUnavailableError: it failed.
    """
    try:
        silu_mul(torch.zeros(1, 2, device=device))
    except Exception as error:  # a compiler, an assembler, a driver: each fails with types of its own
        raise KernelsUnavailableError(f"Triton does not run on {device}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What a log line says of an error; compilers and drivers write pages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


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
        **tile_constants(edits.largest_rank),
    )


def tile_constants(largest_rank: int) -> dict[str, int]:
    """Constants of `edit_tiles_kernel`: with four warps rank 64 spills registers on a Hopper GPU."""
    rank = max(triton.next_power_of_2(largest_rank), 16)
    return {
        "FIELDS": NUM_FIELDS,
        "ROWS": TILE_ROWS,
        "RANK": rank,
        "COLUMNS": 64,
        "num_warps": 8 if rank > 32 else 4,
    }


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, `[num_rows, width]` from `[num_rows, 2 * width]`."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(num_rows, width)
    block = min(triton.next_power_of_2(width), 2048)
    silu_mul_kernel[(num_rows, triton.cdiv(width, block))](gate_up, out, width, BLOCK=block, num_warps=4)
    return out
