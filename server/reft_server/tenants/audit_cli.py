"""`reft-serve audit ...`: the audit log, read on the machine that has the store, with or without a server."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reft-serve audit", description="Read the audit log.")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = add_command(commands, "export", "write entries as JSON lines, oldest first", _export)
    export.add_argument("--after", type=int, metavar="ID", help="only those after this entry")
    export.add_argument("--since", type=_moment, metavar="TIME", help="ISO 8601, in UTC if it names no zone")
    export.add_argument("--until", type=_moment, metavar="TIME", help="not included")
    export.add_argument("--tenant", help="whose things they are about")
    export.add_argument("--action", help="such as key.revoke; `key.` is everything about keys")
    return parser


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-21 or 2026-11-21T18:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
