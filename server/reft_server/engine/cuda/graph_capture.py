"""Recording a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Capture = Callable[[Callable[[], Tensor]], tuple[Callable[[], None], Tensor]]
"""Takes a function of no arguments; gives what runs it again, and the tensor that holds its result each time."""


def smallest_size(sizes: Sequence[int], num_rows: int) -> int:
    """Of the numbers of rows that have a graph, in order, the first with room for so many."""
    return next(size for size in sizes if size >= num_rows)


class CudaCapture:
    """Records what a function launches. All graphs share one pool of memory: a replay may overwrite another's results.

    Functions run on one stream of the capture's own, before and while they are recorded: memory of the pool is only
    used again on the stream that it was taken on, and cuBLAS takes its workspace when a stream first needs it, which
    then is before recording and outside the pool.
    """

    def __init__(self, device: torch.device) -> None:
        self._memory = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)
        # torch refuses to record into a pool whose graphs are all gone while anything of it is in use ("use_count > 0
        # INTERNAL ASSERT FAILED"), and the graphs of the start-up check go with its cache. So an empty one stays.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            self._anchor, _ = self._record(lambda: None)

    def __call__(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Run a function once, so that its kernels are compiled, then record it; gives its replay and its results."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            function()
        graph, out = self._record(function)
        return graph.replay, out

    def _record(self, function: Callable[[], T]) -> tuple[torch.cuda.CUDAGraph, T]:
        graph = torch.cuda.CUDAGraph()
        # Other threads copy interventions to the device meanwhile: only this one's calls are checked.
        with torch.cuda.graph(graph, pool=self._memory, stream=self._stream, capture_error_mode="thread_local"):
            out = function()
        return graph, out
