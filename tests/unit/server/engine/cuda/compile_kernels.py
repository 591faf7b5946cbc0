"""Compile every kernel for a Hopper GPU, down to machine code, without one: `python compile_kernels.py`.

What the interpreter accepts the compiler may refuse, and what it makes of a kernel decides its speed: registers that
spill, narrow loads, products that are not `wgmma`. Prints a line of JSON for each. A process of its own, because Triton
either interprets or compiles.
"""

from __future__ import annotations

import collections
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reft_server.engine.cuda import (
    attention_kernels,
    attention_launch,
    edit_kernels,
    launch,
    product_kernel,
    products,
    rope_kernel,
)
from reft_server.engine.cuda.attention_launch import FLOAT32_BLOCK, LARGE_BLOCK, SMALL_BLOCK
from reft_server.engine.kernels import AttentionShape

TARGET = GPUTarget("cuda", 90, 32)
SHAPES = {"llama-3.1-8b": AttentionShape(32, 8, 128, 128**-0.5), "smollm2-135m": AttentionShape(9, 3, 64, 64**-0.5)}
_OPTIONS = ("num_warps", "num_stages")
_MULTIPLES_OF_16 = ("width", "hidden_stride", "num_outputs")  # of the shapes above
_TYPES = {
    "table_ptr": "*i64",
    "index_ptr": "*i32",
    "rows_ptr": "*i32",
    "entries_ptr": "*i32",
    "tables_ptr": "*i32",
    "lengths_ptr": "*i32",
    "tiles_ptr": "*i32",
    "positions_ptr": "*i64",
    "slots_ptr": "*i64",
    "rotary_ptr": "*fp32",
    "partial_ptr": "*fp32",
    "stats_ptr": "*fp32",
    "epsilon": "fp32",
    "scale": "fp32",
}


@dataclass(frozen=True)
class Case:
    """A kernel, and what its launch says: constants, warps and stages."""

    kernel: Any
    constants: dict[str, Any]
    shape: str = ""
    dtype: torch.dtype = torch.bfloat16


def cases() -> Iterator[Case]:
    """Every kernel of the GPU path, as it is launched."""
    edit = edit_kernels.add_edit_norm_kernel
    for num_edits, block, has_more in ((0, 4096, True), (1, 4096, True), (2, 1024, False)):
        flags = {"HAS_BRANCH": has_more, "HAS_NORM": has_more}
        yield Case(edit, {**flags, "NUM_EDITS": num_edits, "FIELDS": 8, "BLOCK": block, "num_warps": 8})
    for rank in (4, 64):
        yield Case(edit_kernels.edit_tiles_kernel, launch.tile_constants(rank))
    yield Case(edit_kernels.silu_mul_kernel, {"BLOCK": 2048})
    yield Case(attention_kernels.merge_kernel, {"MAX_SPLITS": 32, "DIM": 128, "DIM_BLOCK": 128})
    for tile in products.TILES:
        yield Case(product_kernel.few_rows_kernel, {"HAS_BIAS": False, **products.tile_constants(tile, torch.bfloat16)})
    for dtype in (torch.bfloat16, torch.float32):
        constants = products.tile_constants(products.DEFAULT_TILE, dtype)
        yield Case(product_kernel.few_rows_kernel, {"HAS_BIAS": True, **constants}, dtype=dtype)
    for name, shape in SHAPES.items():
        rope = {"HAS_NORM": name == "llama-3.1-8b", **attention_launch.rope_constants(shape)}
        yield Case(rope_kernel.rope_write_kernel, rope, name)
        for dtype, is_split in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, False)):
            constants = attention_launch.decode_constants(shape, dtype)
            yield Case(attention_kernels.decode_kernel, {"IS_SPLIT": is_split, **constants}, name, dtype)
        for dtype, block in (
            (torch.bfloat16, LARGE_BLOCK),
            (torch.bfloat16, SMALL_BLOCK),
            (torch.float32, FLOAT32_BLOCK),
        ):
            constants = attention_launch.prefill_constants(shape, dtype, block)
            yield Case(attention_kernels.prefill_kernel, constants, name, dtype)


def main() -> None:
    """Compile each case; a line for each."""
    for case in cases():
        print(json.dumps(compile_one(case), default=str), flush=True)  # noqa: T201


def compile_one(case: Case) -> dict[str, Any]:
    """Every argument that is not said is a pointer to the case's dtype or an int32.

    Pointers and widths are multiples of 16, as at run time, where Triton looks at the arguments.
    """
    constants = {name: value for name, value in case.constants.items() if name not in _OPTIONS}
    options = {name: value for name, value in case.constants.items() if name in _OPTIONS}
    rows = "*fp32" if case.dtype == torch.float32 else "*bf16"
    varying = case.kernel.do_not_specialize_on_alignment or ()
    signature, attrs = {}, {}
    for index, name in enumerate(case.kernel.arg_names):
        default = rows if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else _TYPES.get(name, default)
        is_aligned = signature[name].startswith("*") and name not in varying
        if is_aligned or name in _MULTIPLES_OF_16:
            attrs[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=case.kernel, signature=signature, constexprs=constants, attrs=attrs)
    compiled = triton.compile(source, target=TARGET, options={"num_warps": 4, **options})
    return {
        "kernel": case.kernel.__name__,
        "shape": case.shape,
        "dtype": str(case.dtype).removeprefix("torch."),
        "constants": case.constants,
        "shared_bytes": compiled.metadata.shared,
        **read_machine_code(compiled.asm["cubin"]),
    }


def read_machine_code(cubin: bytes) -> dict[str, Any]:
    """Registers of a thread, bytes that it spills, and how often each kind of instruction stands in the code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        code = _run(triton.knobs.nvidia.nvdisasm.path, "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found is not None, usage
    registers, stack, local = map(int, found.groups())
    opcodes = re.findall(r"\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)", code)
    return {"registers": registers, "spilled_bytes": stack + local, "opcodes": collections.Counter(opcodes)}


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
