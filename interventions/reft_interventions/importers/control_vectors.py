"""GGUF control vectors, as repeng and llama.cpp write them: `direction.<layer>`, added to every row."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from ..errors import InterventionImportError
from .draft import Draft
from .options import ImportOptions
from .steering_vectors import addition_edits

_ARCHITECTURE = "controlvector"


def read_control_vector(path: Path, options: ImportOptions) -> Draft:
    """Read a control vector; `direction.N` is added to the output of layer N (counted from 0), as both do.

    Raises:
        InterventionImportError: not GGUF, not a control vector, or directions of different sizes.

    Source: llama.cpp, `build_cvec` after the feed-forward's residual; repeng, `ControlVector.export_gguf`.
    """
    try:
        reader = gguf.GGUFReader(path)
        architecture = _text(reader, "general.architecture")
        rows = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    except (ValueError, OSError, KeyError, IndexError, TypeError, NotImplementedError, OverflowError) as error:
        raise InterventionImportError(f"{path.name} is not a whole GGUF file", param="source") from error
    if architecture != _ARCHITECTURE:
        raise InterventionImportError(
            f"{path.name} is a GGUF file of architecture {architecture[:40]!r}, not a control vector", param="source"
        )
    vectors: dict[int, Tensor] = {}
    for name, row in rows.items():
        match = re.fullmatch(r"direction\.([0-9]{1,5})", name)
        if match is None:
            raise InterventionImportError(f"{path.name} holds {name[:80]!r} beside its directions", param="source")
        vectors[int(match[1])] = torch.from_numpy(np.array(row, dtype=np.float32).reshape(-1))
    hint = _text(reader, "controlvector.model_hint")
    notes = [f"the file was made for a model of type {hint[:80]!r}"] if hint else []
    return Draft("gguf", addition_edits(vectors, options), positions="all", notes=notes)


def _text(reader: gguf.GGUFReader, key: str) -> str:
    field = reader.get_field(key)
    return "" if field is None else str(field.contents())
