"""The package as a whole."""

from __future__ import annotations

import subprocess
import sys

import reft_client
import reft_client.errors
import reft_client.types


def test_import_brings_in_neither_torch_nor_the_server() -> None:
    code = (
        "import sys, reft_client, reft_client.types, reft_client.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'reft_server', 'reft_interventions'}\n"
        "print(*sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_every_public_error_is_exported() -> None:
    names = {
        name
        for name, value in vars(reft_client.errors).items()
        if isinstance(value, type) and issubclass(value, reft_client.ReftClientError)
    }
    assert names <= set(reft_client.__all__)
