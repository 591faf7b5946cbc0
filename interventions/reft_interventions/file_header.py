"""The header of a safetensors file, checked field by field before any tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn

from .errors import (
    InterventionFileError,
    InterventionFileTooLargeError,
    InterventionManifestError,
    InterventionShapeError,
)
from .manifest import parse_json

_ITEM_BYTES: Mapping[str, int] = MappingProxyType({"F64": 8, "F32": 4, "F16": 2, "BF16": 2})
_METADATA_KEYS = frozenset({"reft", "format"})


@dataclass(frozen=True)
class FileLimits:
    """How large a file may be. Bytes, bytes, and a count."""

    max_file_bytes: int = 64 << 20
    max_header_bytes: int = 1 << 20
    max_tensors: int = 4096


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's entry: dtype name, shape, and its bytes `[begin, end)` after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class FileHeader:
    """A checked header."""

    metadata: Mapping[str, str]
    tensors: Mapping[str, TensorEntry]


def parse_header_length(start: bytes, file_size: int, limits: FileLimits) -> int:
    """The header's length, from the first 9 bytes (or more) of a file of `file_size` bytes.

    Raises:
        InterventionFileTooLargeError: it claims more than the limit.
        InterventionFileError: truncated, or recognisably something else (a zip, a pickle, a git-LFS pointer).
    """
    if start[8:9] != b"{":
        _refuse_foreign(start)
    length = int.from_bytes(start[:8], "little")
    if length > limits.max_header_bytes:
        raise InterventionFileTooLargeError(
            f"the header claims {length} bytes, the limit is {limits.max_header_bytes}; is this an intervention file?"
        )
    if 8 + length > file_size:
        _refuse("the file is truncated inside its header; copy or upload it again")
    return length


def parse_header(text: bytes, data_bytes: int, limits: FileLimits) -> FileHeader:
    """Check a header against the `data_bytes` bytes that follow it.

    Raises:
        InterventionFileTooLargeError: more tensors than the limit.
        InterventionFileError: not JSON, unknown keys, offsets that overlap, leave gaps or exceed the file.
        InterventionShapeError: a dtype other than F64, F32, F16, BF16.
    """
    try:
        header = parse_json(text)
    except InterventionManifestError as error:
        raise InterventionFileError(f"the header can't be read: {error.message}; export the file again") from error
    if not isinstance(header, dict):
        _refuse("the header is not a JSON object; export the file again")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse("__metadata__ must map strings to strings; export the file again")
    if not _METADATA_KEYS.issuperset(metadata):
        unknown = sorted(set(metadata) - _METADATA_KEYS)[0]
        _refuse(f"__metadata__ holds an unknown key {unknown[:80]!r}; remove it")
    if len(header) > limits.max_tensors:
        raise InterventionFileTooLargeError(f"the file holds {len(header)} tensors, the limit is {limits.max_tensors}")
    tensors = {name: _parse_entry(name, entry) for name, entry in header.items()}
    _check_offsets(tensors, data_bytes)
    return FileHeader(MappingProxyType(metadata), MappingProxyType(tensors))


def _parse_entry(name: str, entry: Any) -> TensorEntry:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(f"the header's entry {name[:80]!r} must have dtype, shape and data_offsets; export the file again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise InterventionShapeError(
            f"the tensor {name[:80]!r} has dtype {str(dtype)[:20]!r}; store F64, F32, F16 or BF16", param="dtype"
        )
    if not _are_sizes(shape) or len(shape) > 2 or not _are_sizes(offsets) or len(offsets) != 2:
        _refuse(f"the header's entry {name[:80]!r} has a malformed shape or data_offsets; export the file again")
    begin, end = offsets
    if end - begin != math.prod(shape) * _ITEM_BYTES[dtype]:
        _refuse(f"the tensor {name[:80]!r} does not fill its data_offsets; export the file again")
    return TensorEntry(dtype, tuple(shape), begin, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _check_offsets(tensors: Mapping[str, TensorEntry], data_bytes: int) -> None:
    """The tensors must tile the data exactly, as safetensors demands: nothing hidden, nothing shared."""
    position = 0
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            _refuse(f"the bytes of {name[:80]!r} overlap another tensor or leave a gap; export the file again")
        position = entry.end
    if position > data_bytes:
        _refuse("the file is truncated: its tensors reach beyond its end; copy or upload it again")
    if position < data_bytes:
        _refuse("the file holds bytes after its last tensor; export it again")


def _refuse_foreign(start: bytes) -> None:
    """Name the usual wrong files; anything else is left to the next checks."""
    if start.startswith(b"PK\x03\x04"):
        _refuse("this is a zip archive (perhaps from torch.save), not safetensors; convert it first")
    if len(start) < 9:
        _refuse("the file is truncated: it has no header; copy or upload it again")
    if start[0] == 0x80 and start[1] <= 5:
        _refuse("this is a pickle, which is never read; convert it to safetensors first")
    if start.startswith(b"version "):
        _refuse("this is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`")
    if int.from_bytes(start[:8], "little") < 1 << 62:
        return
    _refuse("this is not a safetensors file")


def _refuse(message: str) -> NoReturn:
    raise InterventionFileError(message)
