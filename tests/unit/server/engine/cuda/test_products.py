"""Products of few rows: what they compute, and who is chosen for them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reft_server.engine import EngineSettings, build_engine
from reft_server.engine.cuda.products import DEFAULT_TILE, MAX_ROWS, TILES, Products, Tile, Timer, few_rows
from reft_server.errors import ConfigurationError

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_outputs", "width"), [(5, 3), (48, 512), (70, 528), (33, 1000)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_few_rows_against_float64(dtype: torch.dtype, num_outputs: int, width: int, has_bias: bool) -> None:
    hidden, weight = rand(3, width, dtype=dtype), rand(num_outputs, width, dtype=dtype)
    bias = rand(num_outputs, dtype=dtype) if has_bias else None
    expected = hidden.double() @ weight.double().T + (0 if bias is None else bias.double())
    for tile in TILES:
        found = few_rows(hidden, weight, bias, tile)
        assert found.dtype == dtype
        difference = (found.double() - expected).abs().max()
        assert float(difference) <= TOLERANCE[dtype] * float(expected.max() - expected.min())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_rows_bits_depend_on_no_other_row(dtype: torch.dtype) -> None:
    hidden, weight = rand(MAX_ROWS, 700, dtype=dtype), rand(40, 700, dtype=dtype)
    together = few_rows(hidden, weight, None, DEFAULT_TILE)
    for num_rows in range(1, MAX_ROWS + 1):
        assert torch.equal(few_rows(hidden[:num_rows], weight, None, DEFAULT_TILE), together[:num_rows])
    others = hidden.clone()
    others[1:] *= -100
    assert torch.equal(few_rows(others, weight, None, DEFAULT_TILE)[0], together[0])


def timer(seconds: dict[int, list[float]]) -> Timer:
    """Of cuBLAS and each tile, by number of rows; runs each of them once."""

    def time(functions: Sequence[Callable[[], Tensor]]) -> list[float]:
        [num_rows] = {function().shape[0] for function in functions}
        return seconds[num_rows][: len(functions)]

    return time


OURS_FASTER = {num_rows: [10.0, 9.0, 9.0, 9.0] for num_rows in (1, 2, 4, 8)}


def chosen(products: Products, shape: tuple[int, int]) -> list[Tile | None]:
    choice = products._shapes[*shape, False].choice
    return [choice.get(num_rows) for num_rows in range(MAX_ROWS + 2)]


def test_the_fastest_is_chosen_for_each_number_of_rows() -> None:
    products = Products(DEFAULT_TILE)
    weights = [rand(16, 24), rand(16, 24, seed=1)]
    layers = [products.make(weight) for weight in weights]
    assert chosen(products, (16, 24)) == [None, *[DEFAULT_TILE] * 8, None]
    # At 2 rows ours is faster, but not by enough; between 4 and 8 rows, 8 decides.
    products.choose(timer({1: [10, 9, 8, 9], 2: [10, 9.9, 9.9, 9.9], 4: [10, 11, 12, 13], 8: [10, 9, 8, 7]}))
    assert chosen(products, (16, 24)) == [None, TILES[1], None, None, None, *[TILES[2]] * 4, None]
    for num_rows in (1, 2, 7, 9):
        hidden = rand(num_rows, 24)
        for layer, weight in zip(layers, weights, strict=True):
            assert torch.allclose(layer(hidden), hidden @ weight.T, atol=1e-5)


def test_a_tile_that_does_not_compile_or_is_wrong_is_not_timed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = Products(DEFAULT_TILE)
    products.make(rand(16, 24))
    broken = replace(DEFAULT_TILE, num_outputs=24)  # no power of two
    with caplog.at_level(logging.INFO):
        products.choose(timer(OURS_FASTER), (broken, TILES[0]))
    assert chosen(products, (16, 24))[1:-1] == [TILES[0]] * 8
    assert sum("product unavailable" in one for one in caplog.messages) == 1
    assert caplog.messages[-1] == (
        "product chosen outputs=16 width=24 rows=8 by=triton-16 us={'cublas': 10000000.0, 'triton-16': 9000000.0}"
    )

    monkeypatch.setattr("reft_server.engine.cuda.products.few_rows", lambda *args: few_rows(*args) + torch.nan)
    products.choose(timer(OURS_FASTER))
    assert chosen(products, (16, 24))[1:-1] == [None] * 8


@pytest.mark.parametrize(("tile", "dtype"), [(None, torch.float32), (DEFAULT_TILE, torch.float64)])
def test_nothing_is_chosen_where_nothing_can_be(tile: Tile | None, dtype: torch.dtype) -> None:
    """On a CPU nothing can be timed, and the kernel does not know float64."""
    products = Products(tile)
    weight, hidden = rand(16, 24, dtype=dtype).cpu(), rand(2, 24, dtype=dtype).cpu()
    assert torch.allclose(products.make(weight)(hidden), hidden @ weight.T, atol=1e-5)
    assert not products._shapes


def test_products_are_refused_where_there_are_no_such_kernels(tiny_model: Any) -> None:
    settings = EngineSettings(products="triton", model_path="packed", kernels="torch")
    with pytest.raises(ConfigurationError, match="needs the packed path with Triton") as caught:
        build_engine(copy.deepcopy(tiny_model("llama")), "tiny", settings)
    assert caught.value.param == "engine_products"
