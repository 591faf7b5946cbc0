"""Commands that need no tensors import no tensor library: they answer at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SLOW = ("torch", "transformers", "numpy", "gguf", "fastapi")
_RUN = """
import sys
from {module} import {main}
try:
    {main}(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({slow!r} & sys.modules.keys()), file=sys.stderr)
"""


def imported_by(module: str, main: str, arguments: list[str], slow: set[str]) -> str:
    """Which of the slow modules are imported when a command has run, in order."""
    code = _RUN.format(module=module, main=main, slow=slow)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("reft_server.cli", ["--help"]),
        ("reft_server.cli", ["--version"]),
        ("reft_server.cli", ["keys", "create", "acme"]),
        ("reft_server.cli", ["audit", "export"]),
        ("reft_server.cli", ["store", "copy", "--help"]),
        ("reft_client.cli", ["--help"]),
    ],
)
def test_command_imports_nothing_that_is_slow(module: str, arguments: list[str], tmp_path: Path) -> None:
    store = ["--store-dir", str(tmp_path)] if arguments[0] in ("keys", "audit") else []
    assert imported_by(module, "main", [*arguments, *store], set(_SLOW)) == ""


@pytest.mark.parametrize(
    ("module", "main"),
    [
        ("reft_interventions.training.cli", "main"),
        ("reft_interventions.importers.cli", "main_import"),
        ("reft_interventions.importers.cli", "main_export"),
    ],
)
def test_options_that_name_formulas_import_torch_and_not_transformers(module: str, main: str) -> None:
    assert imported_by(module, main, ["--help"], {"transformers"}) == ""
