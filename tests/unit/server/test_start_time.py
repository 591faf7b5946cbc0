"""Commands that need no tensors import no tensor library: they answer at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

_RUN = """
import sys
from {module} import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({{"torch", "transformers", "numpy", "gguf", "fastapi"}} & sys.modules.keys()), file=sys.stderr)
"""


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
def test_command_imports_nothing_that_is_slow(
    module: str, arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ["--store-dir", str(tmp_path_factory.mktemp("store"))] if arguments[0] in ("keys", "audit") else []
    command = [sys.executable, "-c", _RUN.format(module=module), *arguments, *store]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "", done.stderr
