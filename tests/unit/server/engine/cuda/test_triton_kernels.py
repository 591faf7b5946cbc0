"""Each Triton kernel against a plain float64 reference, in the interpreter where there is no GPU."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from reft_interventions.activations import activate
from reft_interventions.folding import ActLowRankEdit, LowRankEdit
from reft_interventions.ops import EditGroup
from reft_interventions.tensor_edit import TensorEdit
from reft_server.engine.cuda import attention_launch, launch
from reft_server.engine.cuda.attention_launch import FLOAT32_BLOCK, SMALL_BLOCK, PrefillBlock
from reft_server.engine.cuda.edit_tables import ACTS, RowEdits, TileEdits, build_edit_tables
from reft_server.engine.kernels import AttentionLayer, AttentionShape, Norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SITE = (0, "block_output")
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def low_rank(rank: int, width: int, seed: int) -> LowRankEdit:
    return LowRankEdit(
        rand(rank, width, seed=seed) / width**0.5, rand(rank, seed=seed), rand(rank, width, seed=seed + 1)
    )


def with_act(act: str, rank: int, width: int, *, target: bool) -> ActLowRankEdit:
    source, up = rand(rank, width, seed=5) / width**0.5, rand(rank, width, seed=6)
    if not target:
        return ActLowRankEdit(source, rand(rank, seed=7), up, act)
    subtracted = rand(rank, width, seed=8) / width**0.5
    return ActLowRankEdit(source, rand(rank, seed=7), up, act, subtracted, rand(rank, seed=9))


def in_float64(edit: TensorEdit, rows: Tensor) -> Tensor:
    return edit.with_tensors({name: one.double() for name, one in edit.tensors().items()}).delta(rows.double())


def close(found: Tensor, expected: Tensor) -> None:
    spread = float(expected.max() - expected.min())
    assert float((found.double() - expected).abs().max()) <= TOLERANCE[found.dtype] * spread


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [40, 64])
def test_add_edit_norm_with_mixed_ranks_in_one_launch(dtype: torch.dtype, width: int) -> None:
    edits = [low_rank(rank, width, seed=rank) for rank in (1, 3, 8, 64)]
    groups = [EditGroup(edit, torch.tensor([2 * i])) for i, edit in enumerate(edits)]  # rows 1, 3, 5, 7, 8 are -1
    tables = build_edit_tables({SITE: groups}, 9, DEVICE)
    hidden, branch = rand(9, width, dtype=dtype), rand(9, width, dtype=dtype, seed=1)
    norm = Norm(rand(width, dtype=dtype, seed=2), 1e-5)
    found = tables.sites[SITE]
    assert isinstance(found, RowEdits)

    summed = (hidden + branch).double()
    for i, edit in enumerate(edits):
        summed[2 * i] += in_float64(edit, summed[2 * i][None])[0]
    expected = summed / (summed.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    plain = hidden.clone()
    plain_out = launch.add_edit_norm(plain, branch, norm, None, None)
    out = launch.add_edit_norm(hidden, branch, norm, tables, found)
    assert out is not None
    assert plain_out is not None
    close(hidden, summed)
    close(out, expected)
    unedited = [1, 3, 5, 7, 8]
    assert torch.equal(hidden[unedited].view(torch.uint8), plain[unedited].view(torch.uint8))
    assert torch.equal(out[unedited].view(torch.uint8), plain_out[unedited].view(torch.uint8))
    assert not torch.equal(out[0], plain_out[0])


def test_negative_zero_survives_in_rows_without_edits() -> None:
    tables = build_edit_tables({SITE: [EditGroup(low_rank(2, 16, 1), slice(0, 1))]}, 2, DEVICE)
    hidden = torch.full((2, 16), -0.0, device=DEVICE)
    found = tables.sites[SITE]
    assert isinstance(found, RowEdits)
    launch.add_edit_norm(hidden, None, None, tables, found)
    assert bool(torch.signbit(hidden[1]).all())


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("act", ACTS)
def test_edits_with_an_activation(act: str, target: bool) -> None:
    edit = with_act(act, 3, 32, target=target)
    rows = rand(3, 32)
    expected = rows.double() + in_float64(edit, rows)
    tables = build_edit_tables({SITE: [EditGroup(edit, slice(0, 3))]}, 3, DEVICE)
    found = tables.sites[SITE]
    assert isinstance(found, RowEdits)
    launch.add_edit_norm(rows, None, None, tables, found)
    close(rows, expected)
    assert activate(torch.zeros(1), act).shape == (1,)  # the same name means the same function there


def test_a_row_with_two_edits_gets_them_in_order() -> None:
    first, second = low_rank(2, 32, 1), low_rank(4, 32, 9)
    rows = rand(4, 32)
    expected = rows.double()
    expected[:3] += in_float64(first, expected[:3])
    expected[1:] += in_float64(second, expected[1:])
    groups = [EditGroup(first, slice(0, 3)), EditGroup(second, slice(1, 4))]
    tables = build_edit_tables({SITE: groups}, 4, DEVICE)
    found = tables.sites[SITE]
    assert found == RowEdits(0, 2)
    launch.add_edit_norm(rows, None, None, tables, found)
    close(rows, expected)


def test_each_row_of_an_interchange_has_its_own_bias() -> None:
    edit = LowRankEdit(rand(2, 32), rand(3, 2, seed=3), rand(2, 32, seed=4))
    rows = rand(3, 32, seed=5)
    expected = rows.double() + in_float64(edit, rows)
    tables = build_edit_tables({SITE: [EditGroup(edit, slice(0, 3))]}, 3, DEVICE)
    found = tables.sites[SITE]
    assert isinstance(found, RowEdits)
    launch.add_edit_norm(rows, None, None, tables, found)
    close(rows, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_of_rows_that_share_an_edit(dtype: torch.dtype) -> None:
    width = 80
    edits = [low_rank(4, width, 1), with_act("silu", 20, width, target=True)]
    groups = [EditGroup(edits[0], slice(1, 38)), EditGroup(edits[1], torch.tensor([0, 39, 41]))]
    tables = build_edit_tables({SITE: groups}, 42, DEVICE)
    found = tables.sites[SITE]
    assert isinstance(found, TileEdits)
    rows = rand(42, width, dtype=dtype)
    before = rows.clone()
    expected = rows.double()
    expected[1:38] += in_float64(edits[0], expected[1:38])
    expected[[0, 39, 41]] += in_float64(edits[1], expected[[0, 39, 41]])
    launch.edit_tiles(rows, tables, found)
    close(rows, expected)
    assert torch.equal(rows[[38, 40]].view(torch.uint8), before[[38, 40]].view(torch.uint8))


def test_sites_that_edit_the_same_rows_share_their_tiles() -> None:
    edits = [low_rank(rank, 32, rank) for rank in (2, 20, 3, 4)]
    many, few = slice(0, 33), torch.tensor([33, 36])
    sites = {
        (layer, "block_output"): [EditGroup(edits[2 * layer], many), EditGroup(edits[2 * layer + 1], few)]
        for layer in (0, 1)
    }
    tables = build_edit_tables(sites, 37, DEVICE)
    first, second = (tables.sites[site] for site in sites)
    assert isinstance(first, TileEdits)
    assert isinstance(second, TileEdits)
    assert first.rows is second.rows
    assert [one.entries.tolist() for one in (first, second)] == [[0, 0, 0, 1], [2, 2, 2, 3]]
    assert [one.largest_rank for one in (first, second)] == [20, 4]


def test_rows_with_two_edits_are_not_tiled() -> None:
    """Programs of one launch would write the same row; the others go one level down, with their own entries."""
    each = LowRankEdit(rand(2, 32), rand(3, 2, seed=3), rand(2, 32, seed=4))
    groups = [EditGroup(low_rank(2, 32, 1), slice(0, 34)), EditGroup(each, torch.tensor([2, 33, 35]))]
    tables = build_edit_tables(
        {SITE: [EditGroup(low_rank(3, 32, 2), slice(0, 1))], (9, "block_output"): groups}, 36, DEVICE
    )
    assert tables.sites[9, "block_output"] == RowEdits(1, 2)
    index = tables.index.tolist()
    assert index[1] == [1] * 34 + [-1, 4]
    assert index[2] == [-1, -1, 2] + [-1] * 30 + [3, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_silu_mul(dtype: torch.dtype) -> None:
    gate_up = rand(3, 2 * 40, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    close(launch.silu_mul(gate_up), torch.nn.functional.silu(gate) * up)


def pages_of(shape: AttentionShape, num_pages: int, dtype: torch.dtype) -> attention_launch.Pages:
    size = (num_pages, shape.num_kv_heads, 16, shape.head_dim)
    return attention_launch.Pages(rand(*size, dtype=dtype, seed=1), rand(*size, dtype=dtype, seed=2))


def gather(pages: Tensor, table: list[int], length: int) -> Tensor:
    """`[num_kv_heads, length, head_dim]`, float64, of one sequence."""
    return pages[table].transpose(0, 1).flatten(1, 2)[:, :length].double()


def attention(query: Tensor, keys: Tensor, values: Tensor, position: int, scale: float, window: int | None) -> Tensor:
    """One query, `[num_heads, head_dim]`, in float64."""
    first = 0 if window is None else max(position + 1 - window, 0)
    group = query.shape[0] // keys.shape[0]
    keys, values = (one[:, first : position + 1].repeat_interleave(group, 0) for one in (keys, values))
    scores = torch.einsum("hd,hkd->hk", query.double(), keys) * scale
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), values)


@pytest.mark.parametrize("num_splits", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("num_heads", "num_kv_heads", "dim"), [(4, 2, 16), (3, 1, 24)])
def test_decode_attention_over_pages(
    num_heads: int, num_kv_heads: int, dim: int, window: int | None, num_splits: int
) -> None:
    """Keys in up to three turns, fewer than the most splits."""
    shape = AttentionShape(num_heads, num_kv_heads, dim, dim**-0.5)
    pages = pages_of(shape, 30, torch.float32)
    pages.keys[0], pages.values[0] = math.nan, math.nan  # what nobody owns is never read
    tables = [[3, 9, 1, 12, 2, 20, 7, 8, 29], [5], [11, 4]]
    lengths = [133, 1, 32]
    query = rand(4, num_heads, dim, seed=7)
    padded = torch.tensor([[*row, *[0] * (9 - len(row))] for row in [*tables, []]], dtype=torch.int32, device=DEVICE)
    out = torch.full_like(query, math.nan)
    at = torch.tensor([*lengths, 0], dtype=torch.int32, device=DEVICE)
    attention_launch.decode(query, pages, padded, at, shape, window, out, num_splits)
    for row, (table, length) in enumerate(zip(tables, lengths, strict=True)):
        keys, values = gather(pages.keys, table, length), gather(pages.values, table, length)
        close(out[row], attention(query[row], keys, values, length - 1, shape.scale, window))
    assert bool((out[3] == 0).all())  # padding


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("block", [SMALL_BLOCK, FLOAT32_BLOCK])
@pytest.mark.parametrize("dim", [16, 24])
def test_prefill_attention_over_pages(window: int | None, block: PrefillBlock, dim: int) -> None:
    """Turns that all rows of a tile see, turns that some see, tiles that are cut, and rows of nobody."""
    shape = AttentionShape(4, 2, dim, 0.25)
    pages = pages_of(shape, 12, torch.float32)
    pages.keys[0], pages.values[0] = math.nan, math.nan
    chunks = [(1, 0, 5), (6, 20, 70)]  # first row, position, rows
    tables = [[4], [2, 11, 3, 7, 5, 10]]
    query = rand(76, 4, dim, seed=7)
    padded = torch.tensor([[*row, *[0] * (6 - len(row))] for row in tables], dtype=torch.int32, device=DEVICE)
    tiles = torch.tensor(attention_launch.prefill_tiles(chunks, block.num_queries), dtype=torch.int32, device=DEVICE)
    out = torch.zeros_like(query)
    attention_launch.prefill(query, pages, padded, tiles, shape, window, out, block)
    for (first, position, num_rows), table in zip(chunks, tables, strict=True):
        keys, values = (gather(one, table, position + num_rows) for one in (pages.keys, pages.values))
        for i in (0, num_rows // 2, num_rows - 1):
            close(out[first + i], attention(query[first + i], keys, values, position + i, shape.scale, window))
    assert bool((out[0] == 0).all())  # a row of nobody


def test_tiles_with_the_most_keys_come_first() -> None:
    tiles = attention_launch.prefill_tiles([(0, 0, 130), (130, 500, 3)], 64)
    assert tiles == [(1, 130, 500, 3), (0, 128, 128, 2), (0, 64, 64, 64), (0, 0, 0, 64)]


@pytest.mark.parametrize("has_norms", [False, True])
def test_rope_and_the_write_of_keys_and_values(has_norms: bool) -> None:
    shape = AttentionShape(3, 1, 12, 1.0)
    pages = attention_launch.Pages(torch.zeros(4, 1, 16, 12, device=DEVICE), torch.zeros(4, 1, 16, 12, device=DEVICE))
    angles = rand(50, 6)
    rotary = torch.view_as_real(torch.polar(torch.ones_like(angles), angles)).contiguous()
    norms = rand(2, 12, seed=3) if has_norms else None
    query_norm, key_norm = (None, None) if norms is None else (Norm(norms[0], 1e-6), Norm(norms[1], 1e-6))
    qkv = rand(3, 5 * 12)
    positions, slots = torch.tensor([7, 40, 0], device=DEVICE), torch.tensor([2 * 16 + 7, 16, -1], device=DEVICE)
    layer = AttentionLayer(0, query_norm, key_norm, None)
    query = attention_launch.rope_write(qkv, pages, rotary, positions, slots, layer, norms, shape)

    heads = qkv.view(3, 5, 12).double()
    if norms is not None:
        weights = torch.stack([norms[0], norms[0], norms[0], norms[1]]).double()
        heads[:, :4] *= weights / (heads[:, :4].square().mean(-1, keepdim=True) + 1e-6).sqrt()
    turns = torch.polar(torch.ones_like(angles.double()), angles.double())[positions][:, None]
    pairs = torch.view_as_complex(heads[:, :4].unflatten(-1, (6, 2)).contiguous()) * turns
    rotated = torch.view_as_real(pairs).flatten(-2)
    close(query, rotated[:, :3])
    close(pages.keys[2, 0, 7], rotated[0, 3])
    close(pages.keys[1, 0, 0], rotated[1, 3])
    assert torch.equal(pages.values[2, 0, 7], qkv[0, 48:])
    assert int((pages.keys != 0).any(-1).sum()) == 2  # the third row wrote nothing


@pytest.mark.parametrize("name", ["down", "up"])
def test_weights_that_start_between_two_loads_are_left_to_torch(name: str) -> None:
    edit = low_rank(2, 16, 1)
    shifted = rand(33)[1:].view(2, 16)
    shifted.copy_(getattr(edit, name))
    tables = build_edit_tables({SITE: [EditGroup(edit.with_tensors({name: shifted}), slice(0, 1))]}, 1, DEVICE)
    assert not tables.sites
    assert SITE in build_edit_tables({SITE: [EditGroup(edit, slice(0, 1))]}, 1, DEVICE).sites
