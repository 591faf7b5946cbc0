"""The GPU path: Triton kernels behind the packed path's `Kernels`. Imported only where Triton is there and wanted."""

from .attention import choose_attention
from .decode_graphs import GraphedModel
from .launch import KernelsUnavailableError, check_launch
from .triton_kernels import TritonKernels

__all__ = ["GraphedModel", "KernelsUnavailableError", "TritonKernels", "check_launch", "choose_attention"]
