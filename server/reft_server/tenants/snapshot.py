"""All tenants, keys, grants and routes at one moment, in memory."""

from __future__ import annotations

import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, cast

from pydantic import ValidationError
from sqlalchemy import Connection, Row, and_, select

from reft_client.types import RouteDefinition
from reft_server.routing.model import Route

from .keys import is_match, parse_key
from .model import SHARED, ApiKey, Caller, Scope, Tenant, TenantLimits
from .schema import API_KEYS, GRANTS, REVISION, ROUTE_REVISIONS, ROUTES, TENANTS
from .set_notes import SetNotes, read_set_notes

logger = logging.getLogger(__name__)

_NO_DIGEST = secrets.token_bytes(32)


@dataclass(frozen=True)
class Snapshot:
    """The directory at `revision`.

    Args:
        keys: dead ones too, by id.
        readers: who may use a set of another tenant, by (owner, name).
        routes: what is in force, by (tenant, task).
        sets: description, labels and aliases of the sets that have any, by (owner, name).
    """

    revision: int
    tenants: Mapping[str, Tenant] = field(default_factory=lambda: MappingProxyType({SHARED: Tenant(SHARED)}))
    keys: Mapping[str, ApiKey] = field(default_factory=lambda: MappingProxyType({}))
    readers: Mapping[tuple[str, str], frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    routes: Mapping[tuple[str, str], Route] = field(default_factory=lambda: MappingProxyType({}))
    sets: Mapping[tuple[str, str], SetNotes] = field(default_factory=lambda: MappingProxyType({}))

    def caller(self, key: str) -> Caller | None:
        """Whose key this is; None if it is nobody's, or was revoked or has expired.

        No database, and no slow hash: it runs for every request.
        """
        parsed = parse_key(key)
        if parsed is None:
            return None
        key_id, secret = parsed
        found = self.keys.get(key_id)
        if found is None:
            is_match(secret, b"", _NO_DIGEST)  # an id that exists must not answer later than one that does not
            return None
        if not is_match(secret, found.salt, found.digest) or not found.is_alive(time.time()):
            return None
        return Caller(self.tenants[found.tenant], found.scopes, key_id)

    def may_read(self, owner: str, name: str, reader: str) -> bool:
        """Whether a tenant may use a set: its own, a shared one, or one that was granted to it."""
        return owner in (SHARED, reader) or reader in self.readers.get((owner, name), ())

    def granted_to(self, reader: str) -> tuple[tuple[str, str], ...]:
        """The sets of others that a tenant may use, as (owner, name), in order."""
        return tuple(sorted(one for one, readers in self.readers.items() if reader in readers))


EMPTY = Snapshot(revision=0)


def read_snapshot(connection: Connection) -> Snapshot:
    """Read every table, on a connection of `database.reading`: all at one moment."""
    revision = connection.execute(select(REVISION.c.revision)).scalar_one()
    keys = {
        row.key_id: ApiKey(
            key_id=row.key_id,
            tenant=row.tenant,
            scopes=frozenset(cast("list[Scope]", row.scopes.split())),
            description=row.description,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            salt=bytes(row.salt),
            digest=bytes(row.digest),
        )
        for row in connection.execute(select(API_KEYS))
    }
    limits = [limit.name for limit in fields(TenantLimits)]
    tenants = {
        row.name: Tenant(row.name, row.created_at, TenantLimits(**{name: getattr(row, name) for name in limits}))
        for row in connection.execute(select(TENANTS))
    }
    readers: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in connection.execute(select(GRANTS)):
        readers[row.owner, row.name].add(row.reader)
    return Snapshot(
        revision,
        MappingProxyType(tenants),
        MappingProxyType(keys),
        MappingProxyType({one: frozenset(names) for one, names in readers.items()}),
        MappingProxyType({(route.tenant, route.task): route for route in _routes_in_force(connection)}),
        read_set_notes(connection),
    )


def _routes_in_force(connection: Connection) -> Iterator[Route]:
    keys = (ROUTES.c.tenant, ROUTES.c.task, ROUTES.c.revision)
    is_in_force = and_(*(key == ROUTE_REVISIONS.c[key.name] for key in keys))
    return read_routes(connection.execute(select(ROUTE_REVISIONS).join(ROUTES, is_in_force)))


def read_routes(rows: Iterable[Row[Any]]) -> Iterator[Route]:
    """Rows of the revisions as routes, but for those that another version of this server wrote and this can't read."""
    for row in rows:
        try:
            definition = RouteDefinition.model_validate_json(row.definition)
        except ValidationError:
            logger.error("route_unreadable tenant=%s task=%s revision=%d", row.tenant, row.task, row.revision)
        else:
            yield Route(row.tenant, row.task, row.revision, row.previous, row.created_at, definition)
