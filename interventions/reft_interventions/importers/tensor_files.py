"""Tensors out of files that others wrote: nothing in them is ever executed."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import InterventionImportError

_LFS_START = b"version https://git-lfs"


def read_tensor_file(path: Path) -> Any:
    """What a `.bin`, `.pt`, `.pth` or `.safetensors` file holds: a tensor, or containers of tensors.

    Raises:
        InterventionImportError: missing, truncated, a git-LFS pointer, or a pickle of anything but tensors and plain
            containers.
    """
    start = _first_bytes(path)
    if start.startswith(_LFS_START):
        raise InterventionImportError(
            f"{path.name} is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`", param="source"
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InterventionImportError(f"{path.name} is not a whole safetensors file", param="source") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to the file's author, about pickle protocols and old formats
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InterventionImportError(
            f"{path.name} is a pickle of more than tensors, or no pickle at all; reading it could execute code, so it "
            "is refused. Save a plain state dict again",
            param="source",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise InterventionImportError(f"{path.name} is truncated or damaged; copy it again", param="source") from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict by name.

    Raises:
        InterventionImportError: as `read_tensor_file`, or the file holds something else.
    """
    state = read_tensor_file(path)
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise InterventionImportError(f"{path.name} is not a state dict (names to tensors)", param="source")
    return dict(state)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise InterventionImportError(f"{path} can't be read: {error.strerror}", param="source") from error
