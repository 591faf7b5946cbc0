"""Commands import a tensor library only where they need it: help, and a mistake in an option, come at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import importlib, sys
for command in {commands!r}:
    module, name, *arguments = command
    try:
        getattr(importlib.import_module(module), name)(arguments)
    except SystemExit as end:
        assert not end.code, (command, end.code)
print(*sorted({slow!r} & sys.modules.keys()), file=sys.stderr)
"""
_SLOW = {"torch", "transformers", "numpy", "gguf", "fastapi"}


def imported_by(commands: list[list[str]], slow: set[str]) -> str:
    """Which of the slow modules are imported when commands, each a module, a function and arguments, have run."""
    code = _RUN.format(commands=commands, slow=slow)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        (
            "reft_server.cli",
            (["--help"], ["--version"], ["keys", "create", "acme"], ["audit", "export"], ["store", "copy", "--help"]),
        ),
        ("reft_client.cli", (["--help"], ["bench", "--help"])),
    ],
)
def test_command_imports_nothing_that_is_slow(module: str, commands: tuple[list[str], ...], tmp_path: Path) -> None:
    store = {"keys": ["--store-dir", str(tmp_path)], "audit": ["--store-dir", str(tmp_path)]}
    run = [[module, "main", *command, *store.get(command[0], [])] for command in commands]
    assert imported_by(run, _SLOW) == ""


def test_options_that_name_formulas_import_torch_and_not_transformers() -> None:
    run = [
        ["reft_interventions.training.cli", "main", "--help"],
        ["reft_interventions.importers.cli", "main_import", "--help"],
        ["reft_interventions.importers.cli", "main_export", "--help"],
    ]
    assert imported_by(run, {"transformers"}) == ""
