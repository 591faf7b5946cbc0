"""CUDA graphs without a GPU: what a function launches is recorded once, and replayed without any Python of ours.

What the function computed in Python stays as it was when it was recorded, memory is read where it was, and memory that
the function did not make is not kept alive: what would only show on a GPU shows here.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from triton.runtime.interpreter import GridExecutor

T = TypeVar("T")

_HOST_FUNCTIONS = frozenset(
    {
        torch.Tensor.item,
        torch.Tensor.tolist,
        torch.Tensor.numpy,
        torch.Tensor.__array__,
        torch.Tensor.__bool__,
        torch.Tensor.__int__,
        torch.Tensor.__float__,
        torch.Tensor.__index__,
        torch.Tensor.cpu,
        torch.Tensor.cuda,
        torch.Tensor.pin_memory,
        torch.tensor,
        torch.as_tensor,
        torch.from_numpy,
        torch.frombuffer,
    }
)
"""They read a tensor on the host, or bring the host's values to the device."""

_aten = torch.ops.aten
_WAITING = frozenset(
    {
        _aten._local_scalar_dense.default,
        _aten.nonzero.default,
        _aten.masked_select.default,
        _aten._unique2.default,
        _aten.unique_consecutive.default,
        _aten.repeat_interleave.Tensor,
        _aten.lift_fresh.default,
    }
)
"""The host waits for their result or its size, or they begin with values of the host."""

_BLANK = frozenset({_aten.empty.memory_format, _aten.empty_like.default, _aten.new_empty.default})


class CaptureError(AssertionError):
    """Something that a GPU refuses while it records a graph, or that a graph must not rely on."""


@dataclass(frozen=True)
class _Outside:
    """A tensor whose memory the recorded function found: the graph knows where it lies, and doesn't keep it."""

    storage: StorageWeakRef
    like: Tensor  # without memory
    offset: int

    def tensor(self) -> Tensor:
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise CaptureError("a graph reads memory that has been given back since it was recorded")
        like = self.like
        return torch.empty(0, dtype=like.dtype).set_(storage, self.offset, like.size(), like.stride())


@dataclass(frozen=True)
class _Operation:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    fresh: tuple[tuple[int, Tensor], ...]  # its results in memory of their own, by their place among all results

    def run(self) -> None:
        args, kwargs = tree_map(_inside, (self.args, self.kwargs))
        results = tree_leaves(self.function(*args, **kwargs))
        for place, result in self.fresh:
            result.copy_(results[place])


class RecordedGraphs:
    """A `Capture`. Graphs share their memory, as they do on a GPU: a replay spoils the results of all others."""

    def __init__(self) -> None:
        self._graphs: weakref.WeakSet[_Graph] = weakref.WeakSet()
        self.num_captured = 0

    def __call__(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Run a function once as it is, then record it.

        Raises:
            CaptureError: the host reads a tensor in it, waits for one, or brings one.
        """
        function()
        with _recording() as graph:
            out = function()
        self.num_captured += 1
        self._graphs.add(graph)

        def replay() -> None:
            self._spoil()
            graph.run()

        self._spoil()  # recording runs nothing on a GPU
        return replay, out

    def _spoil(self) -> None:
        for graph in self._graphs:
            graph.spoil()


class _Graph:
    def __init__(self) -> None:
        self.operations: list[_Operation] = []
        self.own: dict[int, Tensor] = {}  # by the address of their memory

    @torch.inference_mode()
    def run(self) -> None:
        for operation in self.operations:
            operation.run()

    @torch.inference_mode()
    def spoil(self) -> None:
        for tensor in self.own.values():
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
            else:
                tensor.fill_(True if tensor.dtype == torch.bool else torch.iinfo(tensor.dtype).max)

    def record(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = function(*args, **kwargs)
        inputs = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        fresh = tuple(
            (place, leaf)
            for place, leaf in enumerate(tree_leaves(result))
            if isinstance(leaf, Tensor) and _address(leaf) not in inputs
        )
        self.own.update({_address(leaf): leaf for _, leaf in fresh})
        if function not in _BLANK:
            kept_args, kept_kwargs = tree_map(self._outside, (args, kwargs))
            self.operations.append(_Operation(function, kept_args, kept_kwargs, fresh))
        return result

    def _outside(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided or _address(leaf) in self.own:
            return leaf
        like = torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
        return _Outside(StorageWeakRef(leaf.untyped_storage()), like, int(leaf.storage_offset()))


class _Operations(TorchDispatchMode):
    def __init__(self, graph: _Graph) -> None:
        super().__init__()
        self._graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        has_mask = func in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default) and any(
            one is not None and one.dtype in (torch.bool, torch.uint8) for one in args[1]
        )
        if func in _WAITING or has_mask:
            raise CaptureError(f"{func} while a graph is recorded: the host would wait for the GPU, or copy to it")
        return self._graph.record(func, args, kwargs or {})


class _HostCalls(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HOST_FUNCTIONS:
            raise CaptureError(f"{func.__name__} while a graph is recorded: the host reads or brings a tensor")
        return func(*args, **(kwargs or {}))


@contextmanager
def _recording() -> Iterator[_Graph]:
    graph = _Graph()
    launch = GridExecutor.__call__

    def record_launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            graph.record(lambda *a, **k: launch(executor, *a, **k), args, kwargs)

    with mock.patch.object(GridExecutor, "__call__", record_launch), _HostCalls(), _Operations(graph):
        yield graph


def _address(tensor: Tensor) -> int:
    """Where a tensor's memory begins; one that is packed for a CPU's products has a memory of its own."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)


def _inside(leaf: Any) -> Any:
    return leaf.tensor() if isinstance(leaf, _Outside) else leaf
