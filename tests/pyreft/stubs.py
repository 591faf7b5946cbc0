"""Import pyreft without the plotting and data packages that the code we run never calls."""

from __future__ import annotations

import importlib.machinery
import sys
import types
from typing import Any

_UNUSED = ("matplotlib", "matplotlib.pyplot", "seaborn", "networkx", "datasets")


def install() -> None:
    """Put an empty module in the place of each package that only plots or loads data sets."""
    for name in _UNUSED:
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.__getattr__ = _attribute  # type: ignore[method-assign]
        sys.modules[name] = module


def _attribute(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})
