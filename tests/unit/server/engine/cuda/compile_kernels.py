"""Compile every kernel for a Hopper GPU, down to machine code, without one: `python compile_kernels.py`.

What the interpreter accepts the compiler may refuse. Runs in a process of its own, because Triton either interprets or
compiles.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from reft_server.engine.cuda import attention_kernels, edit_kernels

TARGET = GPUTarget("cuda", 90, 32)
_SHAPE = {"PAGE": 16, "DIM": 128}
_TILES = {"DIM_BLOCK": 128, "DOT": triton.language.bfloat16, "GROUP": 4}
CONSTANTS: dict[str, list[dict[str, Any]]] = {
    "add_edit_norm_kernel": [
        {"HAS_BRANCH": True, "HAS_NORM": True, "NUM_EDITS": 0, "FIELDS": 8, "BLOCK": 4096},
        {"HAS_BRANCH": True, "HAS_NORM": True, "NUM_EDITS": 1, "FIELDS": 8, "BLOCK": 4096},
        {"HAS_BRANCH": False, "HAS_NORM": False, "NUM_EDITS": 2, "FIELDS": 8, "BLOCK": 1024},
    ],
    "edit_tiles_kernel": [{"FIELDS": 8, "ROWS": 16, "RANK": rank, "COLUMNS": 64} for rank in (16, 64)],
    "silu_mul_kernel": [{"BLOCK": 2048}],
    "rope_write_kernel": [{"HAS_NORM": has_norm, "HALF": 64, **_SHAPE} for has_norm in (False, True)],
    "decode_kernel": [{"GROUP_BLOCK": 16, "KEYS": 64, **_SHAPE, **_TILES}],
    "merge_kernel": [{"NUM_SPLITS": 16, "DIM": 128, "DIM_BLOCK": 128}],
    "prefill_kernel": [{"QUERIES": 64, "KEYS": 64, **_SHAPE, **_TILES}],
}
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


def main() -> None:
    """Compile each kernel with each of its constants; a line for each."""
    for module in (edit_kernels, attention_kernels):
        for name in sorted(vars(module)):
            if name.endswith("_kernel"):
                for constants in CONSTANTS[name]:
                    compile_one(getattr(module, name), constants)


def compile_one(kernel: Any, constants: dict[str, Any]) -> None:
    """Everything that is not said is a pointer to bfloat16 or an int32."""
    signature = {}
    for name in kernel.arg_names:
        default = "*bf16" if name.endswith("_ptr") else "i32"
        signature[name] = "constexpr" if name in constants else _TYPES.get(name, default)
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=TARGET, options={"num_warps": 4})
    num_bytes = len(compiled.asm["cubin"])
    print(kernel.__name__, constants, num_bytes, "bytes, shared memory", compiled.metadata.shared)  # noqa: T201


if __name__ == "__main__":
    main()
