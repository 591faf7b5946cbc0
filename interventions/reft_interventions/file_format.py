"""The intervention file: safetensors with the manifest in its metadata. Reading it executes nothing.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from .errors import InterventionFileError, InterventionFileTooLargeError, InterventionManifestError
from .file_header import FileHeader, FileLimits, parse_header, parse_header_length
from .intervention_set import InterventionSet, check_names, check_shape
from .manifest import Manifest

__all__ = ["FileLimits", "dumps", "load", "loads", "read_manifest", "save"]

MANIFEST_KEY = "reft"


def dumps(intervention_set: InterventionSet) -> bytes:
    """The bytes of the intervention file."""
    metadata = {MANIFEST_KEY: intervention_set.manifest.canonical_json()}
    return save_safetensors(intervention_set.named_tensors(), metadata)


def save(intervention_set: InterventionSet, path: str | os.PathLike[str]) -> str:
    """Write the file atomically: a reader, or a crash, sees the old file or the new one, never a part.

    Returns:
        The content hash, `sha256:<hex>`.

    Raises:
        OSError: the folder does not exist, is full or can't be written to; the old file is untouched.
    """
    target = Path(path)
    data = dumps(intervention_set)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    return intervention_set.content_hash


def load(path: str | os.PathLike[str], limits: FileLimits | None = None) -> InterventionSet:
    """Read an intervention file; its size and header are checked before anything of their size is allocated.

    Raises:
        InterventionFileTooLargeError: a limit is exceeded.
        InterventionFileError: not a regular file, can't be read, or not an intervention file.
        InterventionManifestError: the manifest is wrong, or tensors are missing or left over.
        InterventionShapeError: a tensor's shape or dtype is wrong.
    """
    limits = limits or FileLimits()
    with _open_regular(Path(path), limits) as file:
        return loads(file.read(limits.max_file_bytes + 1), limits)


def loads(data: bytes, limits: FileLimits | None = None) -> InterventionSet:
    """Read an intervention file from memory; raises as `load` does."""
    limits = limits or FileLimits()
    if len(data) > limits.max_file_bytes:
        raise _too_large(limits)
    header_length = parse_header_length(data, len(data), limits)
    header = parse_header(data[8 : 8 + header_length], len(data) - 8 - header_length, limits)
    manifest = _manifest_of(header)
    _check_tensors(header, manifest)
    try:
        tensors = load_safetensors(data)
    except SafetensorError as error:
        raise InterventionFileError("safetensors can't read this file; export it again") from error
    parameters = [
        {name: tensors[f"sites.{index}.{name}"] for name in names} for index, names in _groups(header, manifest).items()
    ]
    return InterventionSet.create(manifest, parameters)


def read_manifest(path: str | os.PathLike[str], limits: FileLimits | None = None) -> Manifest:
    """Read the manifest alone; the tensors stay on disk. Raises as `load` does."""
    limits = limits or FileLimits()
    with _open_regular(Path(path), limits) as file:
        size = os.fstat(file.fileno()).st_size
        header_length = parse_header_length(file.read(9), size, limits)
        file.seek(8)
        header = parse_header(file.read(header_length), size - 8 - header_length, limits)
    return _manifest_of(header)


def _open_regular(path: Path, limits: FileLimits) -> BinaryIO:
    """Open a regular file for reading; anything else (a pipe, a folder) is refused without blocking."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InterventionFileError(f"{path.name!r} can't be opened: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InterventionFileError(f"{path.name!r} is not a regular file")
    if status.st_size > limits.max_file_bytes:
        os.close(descriptor)
        raise _too_large(limits)
    return os.fdopen(descriptor, "rb")


def _too_large(limits: FileLimits) -> InterventionFileTooLargeError:
    return InterventionFileTooLargeError(
        f"the file is larger than {limits.max_file_bytes} bytes; raise the limit if you trust it"
    )


def _manifest_of(header: FileHeader) -> Manifest:
    text = header.metadata.get(MANIFEST_KEY)
    if text is None:
        raise InterventionManifestError(
            f"the file's metadata has no {MANIFEST_KEY!r} entry; save it with reft_interventions.save",
            param=MANIFEST_KEY,
        )
    return Manifest.parse(text)


def _groups(header: FileHeader, manifest: Manifest) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {index: [] for index in range(manifest.num_parameter_groups)}
    prefixes = {f"sites.{index}": index for index in groups}
    for full_name in header.tensors:
        prefix, _, name = full_name.rpartition(".")
        if prefix not in prefixes:
            raise InterventionManifestError(
                f"the file holds a tensor that the manifest does not use: {full_name[:80]!r}; remove it", param="sites"
            )
        groups[prefixes[prefix]].append(name)
    return groups


def _check_tensors(header: FileHeader, manifest: Manifest) -> None:
    groups = _groups(header, manifest)
    for index, spec in enumerate(manifest.parameter_groups):
        check_names(spec, index, groups[index])
        for name in groups[index]:
            shape = header.tensors[f"sites.{index}.{name}"].shape
            check_shape(spec, index, name, shape, manifest.base_model.hidden_size)
