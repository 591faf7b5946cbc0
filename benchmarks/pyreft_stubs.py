"""pyreft, imported without the plotting and data packages that the benchmarks never call."""

from __future__ import annotations

import contextlib
import importlib
import importlib.machinery
import sys
import types


def _stub(name: str) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
    sys.modules[name] = module


for _package in ("matplotlib", "matplotlib.pyplot", "seaborn", "datasets"):
    _stub(_package)
with contextlib.redirect_stdout(sys.stderr):  # it prints, and a worker's output is its answers
    pyreft = importlib.import_module("pyreft")
