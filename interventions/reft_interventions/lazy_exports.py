"""Packages that export names without importing the modules that hold them: a command that needs none starts at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module


def lazy_exports(package: str, exports: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """The `__getattr__` (PEP 562) of a package whose modules are imported when one of their names is first used.

    Define it where no type checker looks, beside the imports that only one sees:

        if TYPE_CHECKING:
            from .folded import FoldedSet
        else:
            __getattr__ = lazy_exports(__name__, {"folded": ("FoldedSet",)})

    Args:
        package: its `__name__`.
        exports: names by module. No name may be that of a module of the package: importing the module would hide it.
    """
    modules = {name: module for module, names in exports.items() for name in names}

    def load(name: str) -> object:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
