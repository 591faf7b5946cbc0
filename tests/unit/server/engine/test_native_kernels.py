"""Every native kernel against a plain float64 reference, at odd sizes."""

from __future__ import annotations

import itertools
from array import array
from ctypes import byref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from reft_interventions.user_folders import default_cache_dir
from reft_server.engine.native import NativeLibrary, load_library
from reft_server.engine.native.structures import AttentionShape
from reft_server.engine.native.weights import Arena, pack_gated, pack_linear
from reft_server.engine.settings import WeightDtype

ROWS = (1, 2, 5, 12, 13, 33)
DTYPES: tuple[WeightDtype, ...] = ("model", "bfloat16", "int8")


@pytest.fixture(scope="module")
def library() -> NativeLibrary:
    return load_library(default_cache_dir())


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(weight: Tensor, dtype: WeightDtype) -> Tensor:
    """What is left of a weight `[outputs, inputs]` once it is stored, float64."""
    if dtype == "bfloat16":
        return weight.bfloat16().double()
    if dtype == "int8":
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        return (weight / scale).round().double() * scale.double()
    return weight.double()


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the largest value expected."""
    assert got.isfinite().all()
    assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (31, 7), (32, 64), (33, 576), (130, 37)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_product_matches_float64(
    dtype: WeightDtype, outputs: int, inputs: int, has_bias: bool, library: NativeLibrary
) -> None:
    weight, bias = randn(outputs, inputs), randn(outputs, seed=1) if has_bias else None
    packed = pack_linear(weight, bias, library.panel_columns, dtype, arena=Arena())
    for num_rows in ROWS:
        hidden = randn(num_rows, inputs, seed=2)
        expected = F.linear(hidden.double(), stored(weight, dtype), None if bias is None else bias.double())
        assert_close(library.product(packed, hidden), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (16, 32), (45, 37)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gated_product_matches_float64(
    dtype: WeightDtype, outputs: int, inputs: int, has_bias: bool, library: NativeLibrary
) -> None:
    gate, up = randn(2, outputs, inputs)
    biases = (randn(outputs, seed=1), randn(outputs, seed=2)) if has_bias else None
    packed = pack_gated(gate, up, biases, library.panel_columns, dtype, arena=Arena())
    zero = torch.zeros(outputs)
    gate_bias, up_bias = biases or (zero, zero)
    for num_rows in ROWS:
        hidden = randn(num_rows, inputs, seed=3)
        gates = F.linear(hidden.double(), stored(gate, dtype), gate_bias.double())
        ups = F.linear(hidden.double(), stored(up, dtype), up_bias.double())
        assert_close(library.product(packed, hidden), F.silu(gates) * ups)


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_of_a_row_is_the_same_in_any_company(dtype: WeightDtype, library: NativeLibrary) -> None:
    packed = pack_linear(randn(70, 129), None, library.panel_columns, dtype, arena=Arena())
    hidden = randn(300, 129, seed=1)
    together = library.product(packed, hidden)
    for first, num_rows in ((0, 1), (17, 5), (100, 13), (280, 20)):
        alone = library.product(packed, hidden[first : first + num_rows].contiguous())
        assert torch.equal(alone, together[first : first + num_rows])


def test_exponential_is_accurate_and_keeps_what_is_not_finite(library: NativeLibrary) -> None:
    x = torch.linspace(-87.2, 88.2, 1 << 16)
    out = torch.empty_like(x)
    library.exponential(x.data_ptr(), x.numel(), out.data_ptr())
    expected = x.double().exp()
    assert ((out.double() - expected) / expected).abs().max() < 3e-7
    edges = torch.tensor([-torch.inf, -1e30, -87.4, 0.0, 88.5, 1e30, torch.inf, torch.nan] * 4)
    out = torch.empty_like(edges)
    library.exponential(edges.data_ptr(), edges.numel(), out.data_ptr())
    inf = torch.inf
    assert torch.equal(out[:7], torch.tensor([0.0, 0.0, 0.0, 1.0, inf, inf, inf]))
    assert out[7].isnan()


@pytest.mark.parametrize("size", [1, 8, 15, 16, 33, 576])
def test_rms_norm_matches_float64(size: int, library: NativeLibrary) -> None:
    x, weight, out = randn(size), randn(size, seed=1), torch.empty(size)
    library.rms_norm(x.data_ptr(), weight.data_ptr(), size, 1e-5, out.data_ptr())
    assert_close(out, F.rms_norm(x.double(), (size,), weight.double(), 1e-5))


@pytest.mark.parametrize("half", [1, 4, 17, 32])
def test_rotation_matches_float64(half: int, library: NativeLibrary) -> None:
    angles, head = randn(half).double(), randn(2 * half, seed=1)
    cosine, sine = angles.cos().float(), angles.sin().float()
    first, second = head.double().chunk(2)
    expected = torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()))
    library.rotate(cosine.data_ptr(), sine.data_ptr(), half, head.data_ptr())
    assert_close(head, expected)


class Cache:
    """K and V of one layer: `[num_rows, num_kv_heads, capacity, dim]`, and sequences that live there.

    A sequence is (past tokens, new tokens, shared tokens); what is not its own holds NaN, which must not spread.
    """

    def __init__(self, sequences: list[tuple[int, int, int]], num_kv_heads: int, group: int, dim: int) -> None:
        self.sequences = sequences
        self.shape = AttentionShape(num_kv_heads * group, num_kv_heads, dim, dim**-0.5)
        capacity = max(past + new for past, new, _ in sequences)
        kv = randn(2, len(sequences), num_kv_heads, capacity, dim, seed=1)
        shared = randn(2, 1, num_kv_heads, capacity, dim, seed=2)
        self.own = torch.full_like(kv, torch.nan)
        self.full = kv.clone()  # every sequence's K and V in one piece
        for row, (past, new, num_shared) in enumerate(sequences):
            self.full[:, row, :, :num_shared] = shared[:, 0, :, :num_shared]
            last = past + new
            self.own[:, row, :, : last - num_shared] = self.full[:, row, :, num_shared:last]
        self.shared = shared
        self.heads = randn(sum(new for _, new, _ in sequences), num_kv_heads * (group + 2), dim, seed=3)

    def attend(self, library: NativeLibrary, window: int = 0, *, is_split: bool = True) -> Tensor:
        """`[num_tokens, num_heads, dim]`. `is_split` False: read every sequence in one piece instead."""
        own, shared = (self.own if is_split else self.full), self.shared
        tables = [array("q", [one[0].data_ptr(), one[1].data_ptr()]) for one in (own, shared)]
        own_table, shared_table = (table.buffer_info()[0] for table in tables)
        spans = array("q")
        for row, ((past, new, num_shared), first) in enumerate(zip(self.sequences, self._starts, strict=True)):
            prefix = (shared_table, 0, shared.shape[3], num_shared) if is_split and num_shared else (0, 0, 0, 0)
            spans.extend((first, new, past, own_table, row, own.shape[3], *prefix))
        out = torch.full((self.heads.shape[0], self.shape.num_heads, self.shape.head_dim), torch.nan)
        address, num_spans = spans.buffer_info()[0], len(self.sequences)
        arguments = (num_spans, self.heads.shape[0], window, self.heads.data_ptr(), out.data_ptr())
        assert library.attend(byref(self.shape), address, *arguments) == 0
        return out

    def expected(self, window: int = 0) -> Tensor:
        """In float64, each sequence by itself, with plain masks."""
        outputs = []
        group = self.shape.num_heads // self.shape.num_kv_heads
        for row, ((past, new, _), first) in enumerate(zip(self.sequences, self._starts, strict=True)):
            keys, values = self.full[:, row, :, : past + new].double().repeat_interleave(group, 1)
            queries = self.heads[first : first + new, : self.shape.num_heads].double().transpose(0, 1)
            index, positions = torch.arange(past + new), torch.arange(past, past + new)[:, None]
            visible = (index <= positions) & ((index > positions - window) if window else True)
            scores = queries @ keys.transpose(1, 2) * self.shape.scale
            weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
            outputs.append((weights @ values).transpose(0, 1))
        return torch.cat(outputs)

    @property
    def _starts(self) -> list[int]:
        return [0, *itertools.accumulate(new for _, new, _ in self.sequences)][:-1]


SEQUENCES = {
    "one decode": [(0, 1, 0)],
    "decodes": [(5, 1, 0), (130, 1, 0), (64, 1, 0), (12, 1, 0)],
    "prefills": [(0, 33, 0), (0, 1, 0), (7, 20, 0), (100, 3, 0)],
    "shared prefix": [(40 + i, 1, 37) for i in range(13)],
    "shared and not": [(40, 1, 37), (37, 9, 37), (50, 1, 37), (9, 1, 0), (20, 1, 16), (20, 4, 16)],
}


@pytest.mark.parametrize("sequences", SEQUENCES)
@pytest.mark.parametrize("group", [1, 2, 3, 8, 17])
@pytest.mark.parametrize("dim", [8, 20, 64])
@pytest.mark.parametrize("window", [0, 1, 6, 45])
def test_attention_matches_float64(sequences: str, group: int, dim: int, window: int, library: NativeLibrary) -> None:
    cache = Cache(SEQUENCES[sequences], num_kv_heads=2, group=group, dim=dim)
    assert_close(cache.attend(library, window), cache.expected(window), 5e-6)


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("window", [0, 6])
def test_attention_of_a_sequence_is_the_same_alone_shared_or_not(
    group: int, window: int, library: NativeLibrary
) -> None:
    sequences = SEQUENCES["shared and not"]
    cache = Cache(sequences, num_kv_heads=2, group=group, dim=24)
    together = cache.attend(library, window)
    assert torch.equal(cache.attend(library, window, is_split=False), together)
    first = 0
    for row, (past, new, num_shared) in enumerate(sequences):
        alone = Cache([(past, new, num_shared)], num_kv_heads=2, group=group, dim=24)
        alone.full, alone.own, alone.shared = cache.full[:, row : row + 1], cache.own[:, row : row + 1], cache.shared
        alone.full, alone.own = alone.full.contiguous(), alone.own.contiguous()
        alone.heads = cache.heads[first : first + new]
        assert torch.equal(alone.attend(library, window), together[first : first + new])
        first += new
