"""Products of few rows with frozen weights: our own kernel or cuBLAS, whichever this device does faster."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from reft_server.engine.linear import Linear, make_linear

from .attention_launch import dot_dtype
from .graph_capture import Capture, smallest_size
from .launch import first_line
from .product_kernel import few_rows_kernel

logger = logging.getLogger(__name__)

MAX_ROWS = 8  # the columns of the smallest tensor core product
TIMED_ROWS = (1, 2, 4, 8)  # numbers between take the choice of the next one
_NUM_WARPS = 4
_PIECE_BYTES = 128  # a line of the caches
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_TOLERANCE = 2e-2  # of the spread, between two products of bfloat16
_LEAST_GAIN = 0.02  # cuBLAS stays where ours is not faster by more than clocks differ
_REPEATS = 7


@dataclass(frozen=True)
class Tile:
    """What one program takes at a time: for each warp `_PIECE_BYTES` of the weights of `num_outputs` outputs."""

    num_outputs: int
    num_stages: int


TILES = (Tile(16, 6), Tile(32, 4), Tile(64, 3))
"""32 KiB of weights and more are always under way in each program, of which three fit a Hopper GPU's multiprocessor."""
DEFAULT_TILE = TILES[1]

Choice = dict[int, Tile]
"""By number of rows; without one, cuBLAS."""


def few_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, tile: Tile) -> Tensor:
    """`hidden weight^T + bias`, `[num_rows, num_outputs]`, summed in float32.

    A row's bits depend neither on the others nor on their number.

    Args:
        hidden: `[num_rows, width]`, at most `MAX_ROWS` rows.
        weight: `[num_outputs, width]`, contiguous, of the same dtype: float32, float16 or bfloat16.
    """
    num_rows, (num_outputs, width) = hidden.shape[0], weight.shape
    out = hidden.new_empty(num_rows, num_outputs)
    few_rows_kernel[(triton.cdiv(num_outputs, tile.num_outputs),)](
        hidden.contiguous(),
        weight,
        weight if bias is None else bias,
        out,
        num_rows,
        num_outputs,
        width,
        HAS_BIAS=bias is not None,
        **tile_constants(tile, weight.dtype),
    )
    return out


def tile_constants(tile: Tile, dtype: torch.dtype) -> dict[str, Any]:
    """Constants of `few_rows_kernel`."""
    return {
        "ROWS": MAX_ROWS,
        "OUTPUTS": tile.num_outputs,
        "PARTS": _NUM_WARPS,
        "COLUMNS": _PIECE_BYTES // dtype.itemsize,
        "DOT": dot_dtype(dtype),
        "num_warps": _NUM_WARPS,
        "num_stages": tile.num_stages,
    }


@dataclass(frozen=True)
class _Product:
    weight: Tensor
    bias: Tensor | None
    choice: Choice  # of its shape

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.multiply(hidden, self.choice.get(hidden.shape[0]))

    def multiply(self, hidden: Tensor, tile: Tile | None) -> Tensor:
        """By cuBLAS (None), or by our kernel."""
        if tile is None:
            return F.linear(hidden, self.weight, self.bias)
        return few_rows(hidden, self.weight, self.bias, tile)


@dataclass
class _Shape:
    """Products of one shape, one of each layer, and what was chosen for all of them."""

    products: list[_Product] = field(default_factory=list)
    choice: Choice = field(default_factory=dict)


Timer = Callable[[Sequence[Callable[[], Tensor]]], list[float]]
"""Median seconds of each of several functions, taken in turns."""


class Products:
    """The products of one model. Until `choose`, all of them are cuBLAS's.

    Args:
        tile: of every product of up to `MAX_ROWS` rows from the start, for those that don't want to `choose`.
    """

    def __init__(self, tile: Tile | None = None) -> None:
        self._fixed: Choice = {} if tile is None else dict.fromkeys(range(1, MAX_ROWS + 1), tile)
        self._shapes: defaultdict[tuple[int, int, bool], _Shape] = defaultdict(lambda: _Shape(choice=dict(self._fixed)))

    def make(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A product with a frozen weight `[num_outputs, width]`, which may be freed afterwards."""
        is_wanted = weight.device.type == "cuda" or bool(self._fixed)
        if not is_wanted or weight.dtype not in _DTYPES:
            return make_linear(weight, bias)
        num_outputs, width = weight.shape
        shape = self._shapes[num_outputs, width, bias is not None]
        shape.products.append(_Product(weight.detach().clone(), bias, shape.choice))
        return shape.products[-1]

    @torch.inference_mode()
    def choose(self, timer: Timer, tiles: Sequence[Tile] = TILES) -> None:
        """Time cuBLAS and each tile for each shape and number of rows, and keep what is fastest.

        A shape's products of all layers are timed together, so that one finds nothing of its weight in the caches.
        """
        for (num_outputs, width, _), shape in self._shapes.items():
            shape.choice.clear()
            usable = list(_usable(shape.products[0], tiles))
            if not usable:
                continue
            found: dict[int, Tile | None] = {}
            for num_rows in TIMED_ROWS:
                seconds = _time(shape.products, num_rows, usable, timer)
                best = min(seconds, key=lambda tile: seconds[tile])
                found[num_rows] = best if seconds[best] < (1 - _LEAST_GAIN) * seconds[None] else None
                logger.info(
                    "product chosen outputs=%d width=%d rows=%d by=%s us=%s",
                    *(num_outputs, width, num_rows, _name(found[num_rows])),
                    {_name(tile): round(1e6 * one, 1) for tile, one in seconds.items()},
                )
            for num_rows in range(1, MAX_ROWS + 1):
                tile = found[smallest_size(TIMED_ROWS, num_rows)]
                if tile is not None:
                    shape.choice[num_rows] = tile


def _usable(product: _Product, tiles: Sequence[Tile]) -> Iterator[Tile]:
    """Tiles that this device's compiler takes, and that multiply right."""
    weight = product.weight
    hidden = torch.randn(MAX_ROWS, weight.shape[1], device=weight.device).to(weight.dtype)
    theirs = product.multiply(hidden, None)  # kept: a kernel that writes nothing must not find it in its memory
    expected = theirs.float()
    for tile in tiles:
        try:
            found = product.multiply(hidden, tile).float()
        except Exception as error:  # noqa: BLE001 - a compiler, an assembler, a driver: each fails with types of its own
            logger.warning("product unavailable tile=%s reason=%s", tile, first_line(error))
            continue
        difference = float((found - expected).abs().max() / (expected.max() - expected.min()))
        if difference <= _TOLERANCE:  # NaN is not
            yield tile
        else:
            logger.warning("product unavailable tile=%s reason=differs by %.1e of the spread", tile, difference)


def _time(products: Sequence[_Product], num_rows: int, tiles: Sequence[Tile], timer: Timer) -> dict[Tile | None, float]:
    """Seconds of one product by cuBLAS (None) and by each tile."""
    weight = products[0].weight
    hidden = torch.randn(num_rows, weight.shape[1], device=weight.device).to(weight.dtype)

    def run_all(tile: Tile | None) -> Tensor:
        for one in products:
            out = one.multiply(hidden, tile)
        return out

    candidates = (None, *tiles)
    seconds = timer([partial(run_all, tile) for tile in candidates])
    return {tile: one / len(products) for tile, one in zip(candidates, seconds, strict=True)}


def _name(tile: Tile | None) -> str:
    return "cublas" if tile is None else f"triton-{tile.num_outputs}"


def replay_timer(capture: Capture) -> Timer:
    """A timer that replays functions from CUDA graphs, as decode steps are, and reads the device's own clock."""

    def replay_s(functions: Sequence[Callable[[], Tensor]]) -> list[float]:
        replays = [capture(function)[0] for function in functions]
        rounds = [[_event_s(replay) for replay in replays] for _ in range(_REPEATS)]
        return [sorted(seconds)[_REPEATS // 2] for seconds in zip(*rounds, strict=True)]

    return replay_s


def _event_s(function: Callable[[], object]) -> float:
    """Seconds of a function on the device, behind a first call: the host's launch is over before its turn comes."""
    function()
    started, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    started.record()
    function()
    ended.record()
    ended.synchronize()
    return float(started.elapsed_time(ended)) / 1e3
