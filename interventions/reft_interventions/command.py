"""The command `reft-train`, and how a command says what to install where its extra is missing."""

from __future__ import annotations

import importlib
import sys

_OWN = ("reft_client", "reft_interventions", "reft_server")


def main() -> int:
    """`reft-train`."""
    return run_command("reft-train", "reft_interventions.training.cli", extra="train")


def run_command(command: str, module: str, *, extra: str) -> int:
    """Run the `main` of a module; the exit status.

    The base install, which is the client, has every command. Where the packages of `extra` are missing, one line on
    stderr says what to install, and the status is 1.
    """
    try:
        run = importlib.import_module(module).main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OWN:
            raise
        sys.stderr.write(f"{command} needs {error.name}; run pip install 'reft-serve[{extra}]'\n")
        return 1
    status: int = run()
    return status
