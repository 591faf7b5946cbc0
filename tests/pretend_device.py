"""A GPU without one: tensors on torch's meta device have a shape, a dtype and a place, and no values.

Torch's own meta kernels hardly look at devices, so this does: it refuses what mixes the host's tensors with the
device's, and gives zeros where the host reads from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import GridExecutor

DEVICE = torch.device("meta")

_aten = torch.ops.aten
_COPIES = frozenset({_aten._to_copy.default, _aten.copy_.default})
_INDEXING = frozenset({_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default})


class DeviceError(AssertionError):
    """What a GPU would refuse."""


class PretendDevice(TorchDispatchMode):
    """Refuses operations on tensors of the host and of the device together.

    `num_reads` counts how often the host waited for values.

    Args:
        is_capturing: as while a graph is recorded: tensors of the host and waiting for values are refused too.
    """

    def __init__(self, *, is_capturing: bool = False) -> None:
        super().__init__()
        self._is_capturing = is_capturing
        self.num_reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode, operations come before they are taken apart
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(tensor.device == DEVICE for tensor in tensors)
        on_host = any(tensor.device != DEVICE for tensor in tensors)
        reads = func is _aten._local_scalar_dense.default or (
            func in _COPIES and on_device and (kwargs.get("device") == torch.device("cpu") or args[0].device != DEVICE)
        )
        reads_mask = func in _INDEXING and any(one is not None and one.dtype == torch.bool for one in args[1])
        if self._is_capturing and (reads or reads_mask or on_host or func is _aten.nonzero.default):
            raise DeviceError(f"{func} while a graph is recorded, of tensors on {_devices(tensors)}")
        if reads:
            self.num_reads += 1
            return _zeros(func, args, kwargs)
        if on_device and on_host and func not in _COPIES:
            if func in _INDEXING and args[0].device == DEVICE:
                args = (args[0], [one if one is None else one.to(DEVICE) for one in args[1]], *args[2:])
            elif any(tensor.device != DEVICE and tensor.ndim for tensor in tensors):
                raise DeviceError(f"{func} of tensors on {_devices(tensors)}")
        return func(*args, **kwargs)


@contextmanager
def pretend_device(*, is_capturing: bool = False) -> Iterator[PretendDevice]:
    """Operations and Triton launches as on a GPU; the latter do nothing but look at where their tensors are."""

    def launch(executor: GridExecutor, *args: Any, **kwargs: Any) -> None:
        tensors = [one for one in (*args, *kwargs.values()) if isinstance(one, Tensor)]
        if any(tensor.device != DEVICE for tensor in tensors):
            raise DeviceError(f"a kernel got tensors on {_devices(tensors)}")

    with (
        mock.patch.object(GridExecutor, "__call__", launch),
        mock.patch("torch.fx.experimental._config.meta_nonzero_assume_all_nonzero", True),  # a mask selects every row
        PretendDevice(is_capturing=is_capturing) as mode,
    ):
        yield mode


def _zeros(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the host reads from the device."""
    if func is _aten._local_scalar_dense.default:
        return torch.zeros((), dtype=args[0].dtype).item()
    if func is _aten.copy_.default:
        return args[0].zero_()
    return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)


def _devices(tensors: list[Tensor]) -> str:
    return ", ".join(f"{tensor.device.type}{list(tensor.shape)}" for tensor in tensors)
