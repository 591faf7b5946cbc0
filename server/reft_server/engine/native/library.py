"""The compiled kernels, loaded and checked."""

from __future__ import annotations

import ctypes
import logging
from ctypes import POINTER, c_float, c_int64, c_void_p
from pathlib import Path

import torch
import torch.nn.functional as F

from .compiler import NativeUnavailableError, build_library
from .structures import SIZES, AttentionShape, Config, Linear, Step
from .weights import Arena, PackedLinear, pack_gated, pack_linear

logger = logging.getLogger(__name__)

_TOLERANCE = 1e-5


class NativeLibrary:
    """The functions of `csrc/model.c`. A call releases the interpreter's lock while it runs.

    Attributes:
        panel_columns: columns of one panel of weights.
    """

    def __init__(self, path: Path) -> None:
        """Raises `NativeUnavailableError` if the file is not the library that this code needs."""
        try:
            self._library = ctypes.CDLL(str(path))
            self._declare()
        except (OSError, AttributeError) as error:
            raise NativeUnavailableError(f"{path} can't be loaded: {error}") from error
        described = (c_int64 * (2 + len(SIZES)))()
        self._library.reft_describe(described)
        _, self.panel_columns, *sizes = described
        if tuple(sizes) != SIZES:
            raise NativeUnavailableError(f"{path} has structures of other sizes: {sizes}, not {list(SIZES)}")

    def _declare(self) -> None:
        library = self._library
        signatures = {
            "reft_describe": (None, [POINTER(c_int64)]),
            "reft_create": (c_void_p, [POINTER(Config), c_int64]),
            "reft_destroy": (None, [c_void_p]),
            "reft_begin": (ctypes.c_int, [c_void_p, POINTER(Step)]),
            "reft_run": (None, [c_void_p, c_int64, c_int64]),
            "reft_product": (None, [POINTER(Linear), c_void_p, c_int64, c_void_p]),
            "reft_exponential": (None, [c_void_p, c_int64, c_void_p]),
            "reft_rms_norm": (None, [c_void_p, c_void_p, c_int64, c_float, c_void_p]),
            "reft_rotate": (None, [c_void_p, c_void_p, c_int64, c_void_p]),
            "reft_attend": (
                ctypes.c_int,
                [POINTER(AttentionShape), c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p],
            ),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        self.create = library.reft_create
        self.destroy = library.reft_destroy
        self.begin = library.reft_begin
        self.run = library.reft_run
        self.attend = library.reft_attend
        self.exponential = library.reft_exponential
        self.rms_norm = library.reft_rms_norm
        self.rotate = library.reft_rotate

    def product(self, linear: PackedLinear, hidden: torch.Tensor) -> torch.Tensor:
        """`[num_rows, inputs]` to `[num_rows, outputs]`, on the calling thread; float32, contiguous."""
        out = hidden.new_empty(hidden.shape[0], linear.outputs)
        self._library.reft_product(linear.structure(), hidden.data_ptr(), hidden.shape[0], out.data_ptr())
        return out

    def check(self) -> None:
        """Compare products of every tile height with torch's.

        Raises:
            NativeUnavailableError: they differ: the compiler made something else of the sources.
        """
        generator = torch.Generator().manual_seed(0)
        columns, depth = 2 * self.panel_columns + 3, 37
        gate, up = torch.randn(2, columns, depth, generator=generator)
        arena = Arena()
        plain = pack_linear(gate, None, self.panel_columns, arena=arena)
        gated = pack_gated(gate, up, None, self.panel_columns, arena=arena)
        for num_rows in (*range(1, 14), 25):
            hidden = torch.randn(num_rows, depth, generator=generator)
            pairs = (
                (self.product(plain, hidden), F.linear(hidden, gate)),
                (self.product(gated, hidden), F.silu(F.linear(hidden, gate)) * F.linear(hidden, up)),
            )
            for got, expected in pairs:
                if not bool(((got - expected).abs() <= _TOLERANCE * expected.abs().max()).all()):
                    raise NativeUnavailableError(f"a product of {num_rows} rows is wrong: miscompiled?")


def load_library(cache_dir: Path) -> NativeLibrary:
    """Compile where needed, load and check. A cached file that does not pass is built once more.

    Raises:
        NativeUnavailableError: what keeps the kernels from being used here.
    """
    path = build_library(cache_dir)
    try:
        library = NativeLibrary(path)
        library.check()
    except NativeUnavailableError as error:
        logger.warning("native kernels rebuilt path=%s reason=%s", path, error)
        path.unlink(missing_ok=True)
        library = NativeLibrary(build_library(cache_dir))
        library.check()
    return library
