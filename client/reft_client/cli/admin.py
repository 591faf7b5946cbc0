"""`reft admin ...`: tenants, limits, keys, the audit log and the settings, with an operator's key."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from ..sync_client import ReftClient
from ..types import ApiKeyInfo, CreatedApiKey, TenantInfo, TenantLimits
from .terminal import Terminal, format_time

__all__ = ["add_admin"]

_LIMITS = tuple(TenantLimits.model_fields)
_DAY_S = 86_400.0
_PAGE = 1000
Add = Callable[..., argparse.ArgumentParser]


def add_admin(commands: Any, add: Add) -> None:
    """Add `reft admin` and its commands; `add` adds one."""
    group = commands.add_parser(
        "admin",
        help="manage tenants, keys, limits and settings, and read the audit log",
        description="Manage tenants, keys, limits and settings, and read the audit log, with a key of the scope admin.",
    )
    sub = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_tenants(sub, add)
    _add_keys(sub, add)
    audit = add(sub, "audit", "read the audit log, the newest first", _audit, "reft admin audit --action key.")
    audit.add_argument("-n", "--limit", type=int, default=20, metavar="N", help="how many (default: 20); 0 = all")
    audit.add_argument("--tenant", help="whose things they are about")
    audit.add_argument("--action", help="such as key.revoke; `key.` is everything about keys")
    audit.add_argument("--since", type=_moment, metavar="TIME", help="ISO 8601, in UTC if it names no zone")
    audit.add_argument("--until", type=_moment, metavar="TIME", help="not included")
    add(sub, "reload", "let the server read its settings again", _reload, "reft admin reload")


def _add_tenants(sub: Any, add: Add) -> None:
    add(sub, "tenants", "list the tenants and their limits", _tenants, "reft admin tenants")
    create = add(sub, "create-tenant", "add a tenant", _create_tenant, "reft admin create-tenant acme --max-sets 100")
    limits = add(
        sub,
        "set-limits",
        "replace all limits of a tenant; those not given become the server's defaults",
        _set_limits,
        "reft admin set-limits acme --requests-per-minute 600 --max-sets 100",
    )
    for parser in (create, limits):
        for name in _LIMITS:
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N")
    delete = add(
        sub,
        "delete-tenant",
        "delete a tenant for good, with its keys, sets, routes, jobs and files",
        _delete_tenant,
        "reft admin delete-tenant acme --yes",
    )
    delete.add_argument("--yes", action="store_true", help="don't ask")
    for parser in (create, limits, delete):
        parser.add_argument("tenant", metavar="TENANT")


def _add_keys(sub: Any, add: Add) -> None:
    keys = add(sub, "keys", "list a tenant's keys, without their secrets", _keys, "reft admin keys acme")
    create = add(
        sub,
        "create-key",
        "make a key; prints it, this once",
        _create_key,
        "reft admin create-key acme --scopes infer --expires-in-days 90",
    )
    for parser in (keys, create):
        parser.add_argument("tenant", metavar="TENANT")
    create.add_argument(
        "--scopes", default="infer,upload", help="of infer, upload, admin, metrics (default: infer,upload)"
    )
    create.add_argument("--expires-in-days", type=float, metavar="DAYS", help="(default: it does not expire)")
    create.add_argument("--description", default="", help="what it is for")
    rotate = add(
        sub, "rotate-key", "replace a key; prints the new one, this once", _rotate_key, "reft admin rotate-key ID"
    )
    rotate.add_argument("--overlap-s", type=float, default=0.0, metavar="S", help="the old one goes on so long")
    revoke = add(sub, "revoke-key", "end a key", _revoke_key, "reft admin revoke-key ID")
    for parser in (rotate, revoke):
        parser.add_argument("key_id", metavar="ID")


def _tenants(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.admin.tenants()
    if args.json:
        terminal.json(answer)
    else:
        _print_tenants(answer.data, terminal)
    return 0


def _create_tenant(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    return _print_tenant(client.admin.create_tenant(args.tenant, _limits(args)), args, terminal)


def _set_limits(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    return _print_tenant(client.admin.set_limits(args.tenant, _limits(args)), args, terminal)


def _delete_tenant(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    if not args.yes:
        if not terminal.stdin.isatty():
            args.usage_error("there is no one to ask; add --yes to delete without asking")
        if input(f"Delete {args.tenant} and all that is its own, for good? [y/N] ").strip().lower() not in ("y", "yes"):
            terminal.note("nothing was deleted")
            return 0
    answer = client.admin.delete_tenant(args.tenant)
    terminal.answer(answer, f"deleted {answer.name}", is_json=args.json)
    return 0


def _keys(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.admin.keys(args.tenant)
    if args.json:
        terminal.json(answer)
    else:
        _print_keys(answer.data, terminal)
    return 0


def _create_key(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    days = args.expires_in_days
    made = client.admin.create_key(
        args.tenant,
        args.scopes.split(","),
        description=args.description,
        expires_in_s=None if days is None else days * _DAY_S,
    )
    return _print_new_key(made, args, terminal)


def _rotate_key(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    return _print_new_key(client.admin.rotate_key(args.key_id, overlap_s=args.overlap_s), args, terminal)


def _revoke_key(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.admin.revoke_key(args.key_id)
    terminal.answer(answer, f"revoked the key {answer.id} of {answer.tenant}", is_json=args.json)
    return 0


def _audit(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    """JSON is one entry a line, as in the server's export."""
    rows: list[tuple[str, ...]] = []
    num_left, after, has_more = args.limit or None, None, True
    while has_more and num_left != 0:
        page = client.admin.audit(
            limit=_PAGE if num_left is None else min(num_left, _PAGE),
            after=after,
            tenant=args.tenant,
            action=args.action,
            since=args.since,
            until=args.until,
        )
        for one in page.data:
            if args.json:
                terminal.json(one, indent=None)
            else:
                at = datetime.fromtimestamp(one.at, UTC).strftime("%Y-%m-%d %H:%M:%S")
                details = " ".join(f"{key}={value}" for key, value in one.details.items() if value is not None)
                rows.append((str(one.id), at, one.actor, one.key_id or "", one.action, one.tenant, one.target, details))
        num_left = None if num_left is None else num_left - len(page.data)
        after, has_more = page.last_id, page.has_more
    if not args.json:
        header = ("id", "time", "actor", "key", "action", "tenant", "target", "details")
        terminal.table(header, rows, optional=("key", "id"))
    return 0


def _reload(args: argparse.Namespace, client: ReftClient, terminal: Terminal) -> int:
    answer = client.admin.reload()
    if args.json:
        terminal.json(answer)
    else:
        terminal.line(f"changed: {', '.join(answer.changed) or 'nothing'}")
        if answer.needs_restart:
            terminal.note(f"needs a restart: {', '.join(answer.needs_restart)}")
    return 0


def _limits(args: argparse.Namespace) -> dict[str, int | None]:
    return {name: getattr(args, name) for name in _LIMITS if getattr(args, name) is not None}


def _print_tenant(tenant: TenantInfo, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.json:
        terminal.json(tenant)
    else:
        _print_tenants((tenant,), terminal)
    return 0


def _print_tenants(tenants: Iterable[TenantInfo], terminal: Terminal) -> None:
    rows = []
    for tenant in tenants:
        limits = {name: getattr(tenant.limits, name) for name in _LIMITS}
        text = " ".join(f"{name}={value}" for name, value in limits.items() if value is not None)
        rows.append((tenant.name, format_time(tenant.created), text))
    terminal.table(("tenant", "created", "limits"), rows)


def _print_new_key(key: CreatedApiKey, args: argparse.Namespace, terminal: Terminal) -> int:
    if args.json:
        terminal.json(key)
    else:
        terminal.note(f"key {key.id} of {key.tenant}, for {', '.join(key.scopes)}; it is shown this once:")
        terminal.line(key.key)
    return 0


def _print_keys(keys: Iterable[ApiKeyInfo], terminal: Terminal) -> None:
    rows = [
        (
            key.id,
            ",".join(key.scopes),
            key.state,
            format_time(key.created),
            "" if key.expires_at is None else format_time(key.expires_at),
            key.description,
        )
        for key in keys
    ]
    terminal.table(("id", "scopes", "state", "created", "expires", "description"), rows)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-21 or 2026-11-21T18:00") from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
