"""The command `reft-serve`, which the base install has too."""

from __future__ import annotations

from reft_interventions.command import run_command


def main() -> int:
    """`reft-serve`; where the packages of the extra `server` are missing, a line says so."""
    return run_command("reft-serve", "reft_server.cli", extra="server")
