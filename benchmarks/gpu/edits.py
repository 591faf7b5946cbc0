"""The edit kernels alone, as a share of the copy bandwidth for the bytes that they can't do without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.inputs import RANK, digits, kernel_s, random_edit
from benchmarks.gpu.plan import Plan
from reft_interventions.folding import LowRankEdit
from reft_interventions.ops import EditGroup
from reft_server.engine.cuda import launch
from reft_server.engine.cuda.edit_tables import EditTables, RowEdits, TileEdits, build_edit_tables
from reft_server.engine.kernels import Norm

_NUM_BUFFERS = 8
"""Rows of their own for each launch: together they are larger than the caches of the GPU."""
_TOLERANCE = 1e-2  # a row's delta is rounded, and the row with it
_SITE = (0, "block_output")


def edit_kernels(plan: Plan, found: dict[str, Any]) -> None:
    """Microseconds of one launch on many rows, and the rate of the bytes that it must read and write.

    `distinct`: row by row, each with a set of its own. `one set`, `8 sets`: tiles. `no edit`: residual add and norm.
    """
    rows, width = plan.edited_rows, plan.width
    generator = torch.Generator(plan.device).manual_seed(0)
    first = torch.randn(rows, width, generator=generator, device=plan.device).to(plan.dtype)
    buffers = [first.clone() for _ in range(_NUM_BUFFERS if plan.is_on_gpu else 1)]
    row_bytes = first.nbytes
    norm = Norm(torch.ones(width, dtype=plan.dtype, device=plan.device), 1e-5)
    branch = torch.zeros_like(first)
    launches = [partial(launch.add_edit_norm, one, branch, norm, None, None) for one in buffers]
    _note(plan, found, "no edit", 4 * row_bytes, launches)
    for name, number in (("one set", 1), ("8 sets", 8), ("distinct", rows)):
        edits = _edits(number, width, generator)
        tables = _tables(edits, rows // number, rows, plan.device)
        _check(first, edits, rows // number, tables)
        weight_bytes = sum(edit.num_bytes for edit in edits)
        launches = [partial(_launch, one, tables) for one in buffers]
        _note(plan, found, name, 2 * row_bytes + weight_bytes, launches)


def _check(hidden: Tensor, edits: Sequence[LowRankEdit], rows_each: int, tables: EditTables) -> None:
    """Some rows against plain torch's.

    Raises:
        RuntimeError: they are others.
    """
    found = hidden.clone()
    _launch(found, tables)
    for row in range(0, len(hidden), max(len(hidden) // 16, 1)):
        expected = hidden[row].float() + edits[row // rows_each].delta(hidden[row : row + 1].float())[0]
        difference = float((found[row].float() - expected).abs().max() / (expected.max() - expected.min()))
        if not difference <= _TOLERANCE:  # NaN fails too
            raise RuntimeError(f"row {row} differs from plain torch's by {difference:.1e} of its spread")


def _note(
    plan: Plan, found: dict[str, Any], name: str, num_bytes: int, launches: Sequence[Callable[[], object]]
) -> None:
    seconds = kernel_s(plan, launches)
    found[name] = {"us": digits(1e6 * seconds), "bytes": num_bytes, "gb_per_s": digits(num_bytes / seconds / 1e9)}


def _edits(number: int, width: int, generator: torch.Generator) -> list[LowRankEdit]:
    if number <= 8:
        return [random_edit(width, generator) for _ in range(number)]
    down, up = torch.randn(2, number, RANK, width, generator=generator, device=generator.device) / width**0.5
    bias = torch.randn(number, RANK, generator=generator, device=generator.device)
    return [LowRankEdit(down[i], bias[i], 0.01 * up[i]) for i in range(number)]


def _tables(edits: Sequence[LowRankEdit], rows_each: int, num_rows: int, device: torch.device) -> EditTables:
    groups = [EditGroup(edit, slice(i * rows_each, (i + 1) * rows_each)) for i, edit in enumerate(edits)]
    return build_edit_tables({_SITE: groups}, num_rows, device)


def _launch(hidden: Tensor, tables: EditTables) -> None:
    found = tables.sites[_SITE]
    if isinstance(found, TileEdits):
        launch.edit_tiles(hidden, tables, found)
    elif isinstance(found, RowEdits):
        launch.add_edit_norm(hidden, None, None, tables, found)
