"""The audit log: who changed what and when. Entries are only ever added; the database refuses anything else.

Only the oldest entries may go, together, once an entry says which, how many, and what their digest was. It is an entry
like any other: when it goes too, it is a part of what the next one digests. So the log holds its own history, and an
export of what went can be checked against it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

from sqlalchemy import Connection, delete, func, insert, select

from reft_client.types import AuditEntry
from reft_server.request_context import current_request

from .model import SHARED, wire_name
from .schema import AUDIT_LOG

COMMAND_LINE = "command line"
"""The actor where somebody at the machine runs a command."""
SERVER_PROCESS = "server process"
"""The actor where a server acts by itself: at its start, at a signal, after a time. No tenant can have such a name."""


PRUNE = "audit.prune"
"""The action of an entry that lets older ones go; the database's triggers know it too."""
_MAX_PRUNED = 50_000
"""Entries that one transaction removes: others wait for it."""


@dataclass(frozen=True)
class AuditQuery:
    """Which entries, and how many.

    Args:
        after: of these, the entries that follow the one with this number in the order asked for.
        up_to: the highest number.
        since, until: Unix seconds; `until` is not included.
        action: this one; with a dot at its end, every action on such a thing: `key.`.
    """

    limit: int = 1000
    after: int | None = None
    up_to: int | None = None
    newest_first: bool = False
    tenant: str | None = None
    action: str | None = None
    since: float | None = None
    until: float | None = None


def record(
    connection: Connection, actor: str, action: str, tenant: str, target: str, details: Mapping[str, object]
) -> None:
    """Add an entry. Never content: no texts, no weights, no secrets.

    Args:
        actor: who acts where no request is being served.
        tenant: whose thing it is.
        details: what can't be read from the thing itself afterwards.
    """
    request = current_request()
    entry = {
        "at": time.time(),
        "actor": actor if request is None else request.tenant,
        "key_id": None if request is None else request.key_id,
        "request_id": None if request is None else request.request_id,
        "action": action,
        "tenant": wire_name(tenant),
        "target": target,
        "details": json.dumps(details, sort_keys=True),
    }
    connection.execute(insert(AUDIT_LOG).values(entry))


def read(connection: Connection, query: AuditQuery) -> tuple[AuditEntry, ...]:
    """The entries that a query asks for."""
    number, found = AUDIT_LOG.c.id, select(AUDIT_LOG)
    if query.after is not None:
        found = found.where(number < query.after if query.newest_first else number > query.after)
    if query.up_to is not None:
        found = found.where(number <= query.up_to)
    if query.tenant is not None:
        found = found.where(AUDIT_LOG.c.tenant == query.tenant)
    if query.action is not None:
        action = AUDIT_LOG.c.action
        is_thing = query.action.endswith(".")
        found = found.where(action.startswith(query.action, autoescape=True) if is_thing else action == query.action)
    if query.since is not None:
        found = found.where(AUDIT_LOG.c.at >= query.since)
    if query.until is not None:
        found = found.where(AUDIT_LOG.c.at < query.until)
    found = found.order_by(number.desc() if query.newest_first else number).limit(query.limit)
    return tuple(
        AuditEntry(**{**row._mapping, "details": json.loads(row.details)}) for row in connection.execute(found)
    )


def pages(read_page: Callable[[AuditQuery], tuple[AuditEntry, ...]], query: AuditQuery) -> Iterator[str]:
    """Everything that a query asks for, oldest first, as JSON lines: an entry a line, a page at a time."""
    query = replace(query, newest_first=False)
    while entries := read_page(query):
        yield "".join(f"{entry.model_dump_json()}\n" for entry in entries)
        query = replace(query, after=entries[-1].id)


def last_older(connection: Connection, before: float) -> int:
    """The number of the last entry that is older than a moment, as are all entries ahead of it; 0 = there is none."""
    number = AUDIT_LOG.c.id
    first_kept = connection.execute(select(func.min(number)).where(AUDIT_LOG.c.at >= before)).scalar()
    older = select(func.coalesce(func.max(number), 0))
    return int(connection.execute(older if first_kept is None else older.where(number < first_kept)).scalar_one())


def prune(connection: Connection, actor: str, up_to: int, write: Callable[[str], object]) -> int:
    """Remove the oldest entries, a bounded number, and add one that says so; returns how many went.

    The new entry's target is the number of the last one that went; its details are how many there were and the SHA-256
    of their lines, as `pages` writes them.

    Args:
        up_to: the last number that may go.
        write: is given the lines before they go.
    """
    number = AUDIT_LOG.c.id
    oldest = select(number).where(number <= up_to).order_by(number).limit(_MAX_PRUNED)
    numbers = connection.execute(oldest).scalars().all()
    if not numbers:
        return 0
    digest = hashlib.sha256()
    for page in pages(partial(read, connection), AuditQuery(up_to=numbers[-1])):
        digest.update(page.encode())
        write(page)
    details = {"num_entries": len(numbers), "sha256": digest.hexdigest()}
    record(connection, actor, PRUNE, SHARED, str(numbers[-1]), details)
    connection.execute(delete(AUDIT_LOG).where(number <= numbers[-1]))
    return len(numbers)
