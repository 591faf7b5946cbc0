"""`reft-serve audit ...`: the audit log, read and pruned at the machine of the store, with or without a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from reft_server.errors import ConfigurationError

from .audit import AuditQuery, pages
from .command import add_command, run_command
from .directory import TenantDirectory


def main(argv: Sequence[str]) -> int:
    """Run one command; 0 = done, 2 = it can't be, with a sentence on stderr."""
    return run_command(_parser(), argv)


def _export(directory: TenantDirectory, options: argparse.Namespace) -> None:
    query = AuditQuery(
        after=options.after,
        tenant=options.tenant,
        action=options.action,
        since=options.since,
        until=options.until,
    )
    for page in pages(directory.audit_entries, query):
        sys.stdout.write(page)
        sys.stdout.flush()


def _prune(directory: TenantDirectory, options: argparse.Namespace) -> None:
    if options.output is None:
        num_pruned = directory.prune_audit_log(options.before)
    else:
        try:
            with options.output.open("x", encoding="utf-8") as file:

                def write(page: str) -> None:
                    file.write(page)
                    file.flush()
                    os.fsync(file.fileno())  # before the entries go

                num_pruned = directory.prune_audit_log(options.before, write)
        except OSError as error:
            raise ConfigurationError(f"Can't write {options.output}: {error.strerror}.", param="output") from error
    sys.stderr.write(f"entries removed: {num_pruned}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reft-serve audit", description="Read and prune the audit log.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = add_command(commands, "export", "write entries as JSON lines, oldest first", _export)
    export.add_argument("--after", type=int, metavar="ID", help="only those after this entry")
    export.add_argument("--since", type=_moment, metavar="TIME", help="ISO 8601, in UTC if it names no zone")
    export.add_argument("--until", type=_moment, metavar="TIME", help="not included")
    export.add_argument("--tenant", help="whose things they are about")
    export.add_argument("--action", help="such as key.revoke; `key.` is everything about keys")
    prune = add_command(commands, "prune", "remove old entries; a new one says how many and their digest", _prune)
    prune.add_argument("--before", type=_moment, metavar="TIME", required=True, help="ISO 8601; older entries go")
    prune.add_argument("--output", type=Path, metavar="FILE", help="a new file for the entries that go, as JSON lines")
    return parser


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-21 or 2026-11-21T18:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
