"""What the compiler makes of every kernel for a Hopper GPU: needs no GPU, only a process that does not interpret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("compile_kernels.py")
ATTENTION = {"rope_write_kernel", "decode_kernel", "merge_kernel", "prefill_kernel"}
SHARED_BYTES = 227 << 10  # of one program at most, on an H100 or H200


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def count(kernel: dict[str, Any], *prefixes: str) -> int:
    return sum(number for opcode, number in kernel["opcodes"].items() if opcode.startswith(prefixes))


@pytest.mark.slow
def test_every_kernel_compiles_and_spills_nothing(compiled: list[dict[str, Any]]) -> None:
    assert len(compiled) == 26
    assert {one["kernel"] for one in compiled} >= ATTENTION
    for one in compiled:
        assert one["shared_bytes"] <= SHARED_BYTES, one
        assert one["spilled_bytes"] == count(one, "LDL", "STL") == 0, one


@pytest.mark.slow
def test_attention_reads_and_multiplies_as_wide_as_it_can(compiled: list[dict[str, Any]]) -> None:
    """K, V, queries and values in pieces of 16 bytes; what is narrower are pages and one row's cosines."""
    for one in compiled:
        if one["kernel"] in ("decode_kernel", "prefill_kernel"):
            num_loops = 1 if one["kernel"] == "decode_kernel" else 2
            turns = num_loops * one["constants"]["num_stages"]  # what is asked for before a loop, and in it
            keys = one["constants"]["KEYS"] * one["constants"]["DIM"] * (4 if one["dtype"] == "float32" else 2)
            threads = 32 * one["constants"]["num_warps"]
            assert count(one, "LDGSTS.E.BYPASS.128") == turns * 2 * keys // 16 // threads, one
            assert count(one, "LDG.E.U16", "STG.E.U16", "STG.E.64") == 0, one
        if one["kernel"] == "prefill_kernel" and one["dtype"] == "bfloat16":
            assert count(one, "HGMMA.64x") > 0, one  # wgmma
            assert count(one, "HMMA") == 0, one
        if one["kernel"] == "rope_write_kernel":
            assert count(one, "STG.E.128") == count(one, "STG") == 3, one


@pytest.mark.slow
def test_edits_read_rows_and_weights_in_pieces_of_16_bytes(compiled: list[dict[str, Any]]) -> None:
    """What is narrower: an entry of the table, biases, and the row's index."""
    for one in compiled:
        constants = one["constants"]
        if one["kernel"] == "add_edit_norm_kernel":
            threads = 32 * constants.get("num_warps", 4)
            per_row = constants["BLOCK"] // threads  # values of a thread
            rows = 1 + constants["HAS_BRANCH"] + constants["HAS_NORM"]  # of two bytes
            weights = 3 * constants["NUM_EDITS"]  # source, up and target, of four bytes
            assert count(one, "LDG.E.128") == (rows * per_row * 2 + weights * per_row * 4) // 16, one
        if one["kernel"] == "edit_tiles_kernel":
            assert count(one, "LDGSTS.E.BYPASS.128") > 0, one
            assert count(one, "LDGSTS") == count(one, "LDGSTS.E.BYPASS.128", "LDGSTS.E.64"), one


@pytest.mark.slow
def test_products_ask_for_weights_ahead_in_pieces_of_16_bytes(compiled: list[dict[str, Any]]) -> None:
    """Copied to shared memory: all stages but one before the loop, one in it; no weight goes through registers."""
    for one in compiled:
        if one["kernel"] == "few_rows_kernel":
            constants = one["constants"]
            row_bytes = constants["PARTS"] * constants["COLUMNS"] * (4 if one["dtype"] == "float32" else 2)
            stage_bytes = (constants["OUTPUTS"] + constants["ROWS"]) * row_bytes
            pieces = stage_bytes // 16 // (32 * constants["num_warps"])
            assert count(one, "LDGSTS.E.BYPASS.128") == count(one, "LDGSTS") == constants["num_stages"] * pieces, one
            assert count(one, "LDG") - count(one, "LDGSTS", "LDGDEPBAR") <= 4 * constants["HAS_BIAS"], one
            if one["dtype"] == "bfloat16":
                products = constants["OUTPUTS"] // 16 * constants["COLUMNS"] // 16
                assert count(one, "HMMA.16816") == products, one  # a part of the width for each warp, none done twice
            programs = SHARED_BYTES // (one["shared_bytes"] + 1024)
            # Of the stages one is being multiplied, and one is only asked for behind it.
            under_way = (constants["num_stages"] - 2) * constants["OUTPUTS"] * row_bytes
            assert programs * under_way >= 96 << 10, one
            assert programs * one["registers"] * 32 * constants["num_warps"] <= 65_536, one


@pytest.mark.slow
def test_decode_leaves_room_for_three_programs_on_a_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    for one in compiled:
        if one["kernel"] == "decode_kernel" and one["dtype"] == "bfloat16":
            assert 3 * (one["shared_bytes"] + 1024) <= SHARED_BYTES, one
            assert 3 * one["registers"] * 128 <= 65_536, one
