"""`reft-serve keys ...`: API keys, made and ended on the machine that has the store, with or without a server."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from .command import add_command, run_command
from .directory import TenantDirectory
from .model import SCOPES, SHARED, SHARED_NAME, ApiKey, Scope, key_state, tenant_of_wire_name, wire_name

_DAY_S = 86_400.0
_DEFAULT_SCOPES: tuple[Scope, ...] = ("infer", "upload")


def main(argv: Sequence[str]) -> int:
    """Run one command; 0 = done, 2 = it can't be, with a sentence on stderr."""
    return run_command(_parser(), argv)


def _create(directory: TenantDirectory, options: argparse.Namespace) -> None:
    tenant = tenant_of_wire_name(options.tenant)
    if tenant not in directory.snapshot.tenants:
        directory.create_tenant(tenant)
    scopes = tuple(options.scopes or (_DEFAULT_SCOPES if tenant != SHARED else SCOPES))
    days = options.expires_in_days
    key, born = directory.create_key(
        tenant,
        scopes,
        description=options.description,
        expires_at=None if days is None else time.time() + days * _DAY_S,
    )
    _show_new(key, born.text)


def _rotate(directory: TenantDirectory, options: argparse.Namespace) -> None:
    key, born = directory.rotate_key(options.key_id, overlap_s=options.overlap_s)
    _show_new(key, born.text)


def _revoke(directory: TenantDirectory, options: argparse.Namespace) -> None:
    sys.stderr.write(f"revoked the key {directory.revoke_key(options.key_id).key_id}\n")


def _list(directory: TenantDirectory, options: argparse.Namespace) -> None:
    del options
    now = time.time()
    for key in sorted(directory.snapshot.keys.values(), key=lambda key: (key.tenant, key.created_at)):
        columns = (key.key_id, wire_name(key.tenant), ",".join(sorted(key.scopes)), key_state(key, now))
        sys.stdout.write("\t".join((*columns, _date(key.created_at), _date(key.expires_at), key.description)) + "\n")


def _show_new(key: ApiKey, text: str) -> None:
    # The key alone on stdout: `export REFT_API_KEY=$(reft-serve keys create acme)`.
    ends = "" if key.expires_at is None else f", until {_date(key.expires_at)}"
    rights = ", ".join(sorted(key.scopes))
    sys.stderr.write(f"key {key.key_id} of {wire_name(key.tenant)}, for {rights}{ends}; it is shown this once:\n")
    sys.stdout.write(f"{text}\n")


def _date(moment: float | None) -> str:
    return "-" if moment is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="reft-serve keys", description="Make, list, replace and end API keys. A running server notices at once."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    create = add_command(commands, "create", "make a key, and its tenant where it is new; prints the key", _create)
    create.add_argument(
        "tenant", nargs="?", default=SHARED_NAME, help=f"whose key it is (default: {SHARED_NAME}, the operator's own)"
    )
    create.add_argument(
        "--scopes",
        type=_scopes,
        help=f"of {','.join(SCOPES)} (default: {','.join(_DEFAULT_SCOPES)}; all of them for {SHARED_NAME})",
    )
    create.add_argument("--expires-in-days", type=float, metavar="DAYS", help="(default: it does not expire)")
    create.add_argument("--description", default="", help="what it is for")
    add_command(commands, "list", "list all keys, without their secrets", _list)
    rotate = add_command(commands, "rotate", "replace a key by a new one with the same rights; prints it", _rotate)
    rotate.add_argument("key_id")
    rotate.add_argument("--overlap-s", type=float, default=0.0, metavar="S", help="the old one goes on so long")
    add_command(commands, "revoke", "end a key", _revoke).add_argument("key_id")
    return parser


def _scopes(text: str) -> tuple[Scope, ...]:
    chosen = tuple(scope for scope in SCOPES if scope in text.split(","))
    if len(chosen) != len(set(text.split(","))):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(SCOPES)}")
    return chosen
