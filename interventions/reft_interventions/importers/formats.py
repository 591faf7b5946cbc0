"""Which format a checkpoint has, and the one function that imports any of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from ..errors import InterventionImportError
from .adapter_hub import is_adapter_folder, read_adapter
from .control_vectors import read_control_vector
from .dictionaries import dictionary_file, read_dictionary
from .draft import Draft, ImportedSet, assemble
from .exported import is_exported, read_exported
from .options import ImportOptions
from .pyreft import intervention_folder, read_pyreft
from .steering_vectors import read_steering_vectors

_Reader = Callable[[Path, ImportOptions], Draft]

READERS: Mapping[str, _Reader] = MappingProxyType(
    {
        "pyreft": read_pyreft,
        "adapters": read_adapter,
        "gguf": read_control_vector,
        "vectors": read_steering_vectors,
        "dictionary": read_dictionary,
    }
)


def import_checkpoint(
    source: str | os.PathLike[str], options: ImportOptions | None = None, format: str | None = None
) -> ImportedSet:
    """Turn another library's checkpoint into an intervention set.

    Args:
        source: a file or folder; no name inside it is imported and no code in it is run.
        options: what the checkpoint does not record.
        format: a key of `READERS`; None = found out by looking.

    Raises:
        InterventionImportError: not a checkpoint that we know, or options are missing; the message lists all of them.
        InterventionError: its values or shapes can't be right, or belong to another base model.
    """
    options, path = options or ImportOptions(), Path(source).expanduser()
    if not path.exists():
        raise InterventionImportError(f"{path} does not exist", param="source")
    name = format or detect_format(path, options)
    if name == "pyreft":
        path = intervention_folder(path) or path
        if is_exported(path):
            return read_exported(path, options)
    return assemble(READERS[name](path, options), options)


def detect_format(path: Path, options: ImportOptions) -> str:
    """The format of a file or folder.

    Raises:
        InterventionImportError: none that we know.
    """
    if path.is_dir():
        if is_adapter_folder(path):
            return "adapters"
        if intervention_folder(path) is not None:
            return "pyreft"
        if dictionary_file(path) is not None:
            return "dictionary"
    elif path.suffix == ".gguf":
        return "gguf"
    elif options.concept is not None or path.name.endswith("weight.pt"):
        return "dictionary"
    elif path.suffix in (".pt", ".pth", ".bin", ".safetensors"):
        return "vectors"
    raise InterventionImportError(
        f"{path.name} is no checkpoint that can be imported: a folder of pyreft or of adapters, a .gguf control "
        "vector, a .pt or .safetensors of steering vectors, or a dictionary's weight.pt",
        param="source",
    )
