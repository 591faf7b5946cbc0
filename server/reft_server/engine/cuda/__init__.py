"""The GPU path: Triton kernels behind the packed path's `Kernels`. Imported only where Triton is there and wanted."""

from .attention import choose_attention
from .decode_graphs import GraphedModel
from .triton_kernels import TritonKernels

__all__ = ["GraphedModel", "TritonKernels", "choose_attention"]
