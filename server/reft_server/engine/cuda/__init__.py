"""The GPU path: Triton kernels behind the packed path's `Kernels`. Imported only where Triton is there and wanted."""

import triton

if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 4):
    raise ImportError(f"Triton {triton.__version__} is too old: 3.4 or newer is needed, torch 2.8 brings it")

from .attention import choose_attention
from .decode_graphs import GraphedModel
from .launch import KernelsUnavailableError, check_launch
from .products import DEFAULT_TILE, Products
from .triton_kernels import TritonKernels

__all__ = [
    "DEFAULT_TILE",
    "GraphedModel",
    "KernelsUnavailableError",
    "Products",
    "TritonKernels",
    "check_launch",
    "choose_attention",
]
