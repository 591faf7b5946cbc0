"""The tenants, keys, grants and routes of a server: the database is the truth, and memory answers every request."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from reft_interventions.errors import InvalidInterventionNameError
from reft_interventions.store import check_name
from reft_server.errors import ApiKeyNotFoundError, InvalidRequestError, TenantExistsError, TenantNotFoundError

from .database import engine_of_url, memory_engine, sqlite_engine
from .keys import NewKey, new_key
from .model import SHARED, SHARED_NAME, ApiKey, Scope, Tenant, TenantLimits, wire_name
from .schema import API_KEYS, GRANTS, METADATA, OUTLIVES_TENANT, TENANTS
from .snapshot_database import SnapshotDatabase

logger = logging.getLogger(__name__)

_FILE_NAME = "tenants.sqlite3"
_OWNER_COLUMNS = ("tenant", "owner", "reader")
"""What a column is called that says whose a row is."""


class TenantDirectory(SnapshotDatabase):
    """Tenants, keys and grants, and what changes them.

    Args:
        defaults: limits of tenants that have none of their own.
    """

    def __init__(self, engine: Engine, defaults: TenantLimits | None = None) -> None:
        super().__init__(engine)
        self.defaults = defaults or TenantLimits()

    @classmethod
    def of_store(
        cls, store_dir: Path, defaults: TenantLimits | None = None, database_url: str | None = None
    ) -> TenantDirectory:
        """At a URL; None = in an SQLite file in the store's folder, which only its owner may read.

        Raises:
            ConfigurationError: the URL can't be used; see `engine_of_url`.
        """
        engine = sqlite_engine(store_dir / _FILE_NAME) if database_url is None else engine_of_url(database_url)
        return cls(engine, defaults)

    @classmethod
    def in_memory(cls, defaults: TenantLimits | None = None) -> TenantDirectory:
        """Gone with the process."""
        return cls(memory_engine(), defaults)

    def limits_of(self, tenant: str) -> TenantLimits:
        """What a tenant may use now: its own limits, and the defaults where it has none; None = no limit."""
        found = self.snapshot.tenants.get(tenant)
        return self.defaults if found is None else found.limits.or_else(self.defaults)

    def create_tenant(self, name: str, limits: TenantLimits | None = None) -> Tenant:
        """Add a tenant.

        Raises:
            InvalidRequestError: the name breaks the rules.
            TenantExistsError: it is taken.
        """
        check_tenant_name(name)
        tenant = Tenant(name, time.time(), limits or TenantLimits())
        try:
            with self.change("tenant.create", name, name, **asdict(tenant.limits)) as connection:
                values = {"name": name, "created_at": tenant.created_at, **asdict(tenant.limits)}
                connection.execute(insert(TENANTS).values(values))
        except IntegrityError as error:
            raise TenantExistsError(f"There is a tenant {name!r} already", param="name") from error
        logger.info("tenant_created tenant=%s", name)
        return tenant

    def set_limits(self, name: str, limits: TenantLimits) -> Tenant:
        """Replace a tenant's limits.

        Raises:
            TenantNotFoundError: there is none with this name.
        """
        with self.change("tenant.set_limits", name, name, **asdict(limits)) as connection:
            found = connection.execute(update(TENANTS).where(TENANTS.c.name == name).values(asdict(limits)))
            if not found.rowcount:
                raise _no_tenant(name)
        logger.info("tenant_limits_set tenant=%s", wire_name(name))
        return self.snapshot.tenants[name]

    def close_tenant(self, name: str) -> None:
        """Revoke all keys of a tenant: the first step of its deletion.

        Raises:
            InvalidRequestError: it is the operator's own.
            TenantNotFoundError: there is none with this name.
        """
        if name == SHARED:
            raise InvalidRequestError(f"{SHARED_NAME!r} is the operator's own tenant, and stays", param="tenant")
        with self.change("tenant.close", name, name) as connection:
            if connection.execute(select(TENANTS.c.name).where(TENANTS.c.name == name)).first() is None:
                raise _no_tenant(name)
            of_tenant = (API_KEYS.c.tenant == name) & API_KEYS.c.revoked_at.is_(None)
            connection.execute(update(API_KEYS).where(of_tenant).values(revoked_at=time.time()))
        logger.info("tenant_closed tenant=%s", name)

    def delete_tenant(self, name: str) -> None:
        """Forget a tenant that was closed, and what the database holds of it, but for the audit log.

        Raises:
            TenantNotFoundError: there is none with this name.
        """
        with self.change("tenant.delete", name, name) as connection:
            for table in reversed(METADATA.sorted_tables):
                for column in (table.c[key] for key in _OWNER_COLUMNS if key in table.c):
                    if OUTLIVES_TENANT not in table.info:
                        connection.execute(delete(table).where(column == name))
            is_tenant = (TENANTS.c.name == name) & (TENANTS.c.name != SHARED)
            if not connection.execute(delete(TENANTS).where(is_tenant)).rowcount:
                raise _no_tenant(name)
        logger.info("tenant_deleted tenant=%s", name)

    def create_key(
        self, tenant: str, scopes: Sequence[Scope], *, description: str = "", expires_at: float | None = None
    ) -> tuple[ApiKey, NewKey]:
        """Add a key; its text is nowhere but in the result.

        Args:
            expires_at: Unix seconds; None = never.

        Raises:
            TenantNotFoundError: there is no such tenant.
            InvalidRequestError: no scopes, one that this tenant can't have, or an end in the past.
        """
        if not scopes:
            raise InvalidRequestError("A key needs at least one scope", param="scopes")
        if tenant != SHARED and not {"admin", "metrics"}.isdisjoint(scopes):
            raise InvalidRequestError(
                f"Only keys of the tenant {SHARED_NAME!r} can have the scopes admin and metrics", param="scopes"
            )
        if expires_at is not None and expires_at <= time.time():
            raise InvalidRequestError("The key would have expired already", param="expires_in_s")
        if tenant not in self.snapshot.tenants:
            raise _no_tenant(tenant)
        born = new_key()
        details = {"scopes": sorted(scopes), "expires_at": expires_at}
        with self.change("key.create", tenant, born.key_id, **details) as connection:
            _insert_key(connection, born, tenant, frozenset(scopes), description, expires_at)
        logger.info("api_key_created key_id=%s tenant=%s scopes=%s", born.key_id, wire_name(tenant), " ".join(scopes))
        return self.snapshot.keys[born.key_id], born

    def rotate_key(self, key_id: str, *, overlap_s: float = 0.0) -> tuple[ApiKey, NewKey]:
        """A new key in the place of another, which goes on for `overlap_s` seconds and then ends.

        The new one has the old one's tenant, scopes and description, and lives as long as that was meant to.

        Raises:
            ApiKeyNotFoundError: no living key has this id.
        """
        old, now = self._living(key_id), time.time()
        end = now + overlap_s if old.expires_at is None else min(now + overlap_s, old.expires_at)
        expires_at = None if old.expires_at is None else now + old.expires_at - old.created_at
        born = new_key()
        with self.change("key.rotate", old.tenant, key_id, new_key_id=born.key_id, ends_at=end) as connection:
            _insert_key(connection, born, old.tenant, old.scopes, old.description, expires_at)
            connection.execute(update(API_KEYS).where(API_KEYS.c.key_id == key_id).values(expires_at=end))
        logger.info("api_key_rotated key_id=%s by=%s overlap_s=%g", key_id, born.key_id, overlap_s)
        return self.snapshot.keys[born.key_id], born

    def revoke_key(self, key_id: str) -> ApiKey:
        """End a key now. Its row stays, so that a server that had keys never opens again by losing them.

        Raises:
            ApiKeyNotFoundError: no key has this id, or it was revoked already.
        """
        if (found := self.snapshot.keys.get(key_id)) is None or found.revoked_at is not None:
            raise _no_key(key_id)
        with self.change("key.revoke", found.tenant, key_id) as connection:
            connection.execute(update(API_KEYS).where(API_KEYS.c.key_id == key_id).values(revoked_at=time.time()))
        logger.info("api_key_revoked key_id=%s", key_id)
        return self.snapshot.keys[key_id]

    def grant(self, owner: str, name: str, reader: str) -> None:
        """Let `reader` use all versions of a set of `owner`; `reader` need not exist.

        Raises:
            InvalidRequestError: `reader` can't be a tenant's name.
        """
        check_tenant_name(reader)
        with self.change("grant.create", owner, name, reader=reader) as connection:
            connection.execute(delete(GRANTS).where(_is_grant(owner, name, reader)))
            values = {"owner": owner, "name": name, "reader": reader, "created_at": time.time()}
            connection.execute(insert(GRANTS).values(values))
        logger.info("grant_created owner=%s name=%s reader=%s", wire_name(owner), name, reader)

    def withdraw(self, owner: str, name: str, reader: str | None = None) -> None:
        """Take a grant back; all of the set's with `reader` None. What is not there is no error."""
        readers = self.snapshot.readers.get((owner, name), frozenset())
        if not (readers if reader is None else readers & {reader}):
            return
        with self.change("grant.delete", owner, name, reader=reader) as connection:
            connection.execute(delete(GRANTS).where(_is_grant(owner, name, reader)))
        logger.info("grant_withdrawn owner=%s name=%s reader=%s", wire_name(owner), name, reader or "all")

    def _living(self, key_id: str) -> ApiKey:
        found = self.snapshot.keys.get(key_id)
        if found is None or not found.is_alive(time.time()):
            raise _no_key(key_id)
        return found


def check_tenant_name(name: str) -> str:
    """Return `name` if it may name a tenant: the rule of interventions' names, but for the reserved one.

    Raises:
        InvalidRequestError: it may not.
    """
    try:
        check_name(name)
    except InvalidInterventionNameError as error:
        message = f"{name[:64]!a} can't name a tenant: the rule is that of interventions' names"
        raise InvalidRequestError(message, param="tenant") from error
    if name == SHARED_NAME:
        raise InvalidRequestError(f"{SHARED_NAME!r} is the operator's own tenant", param="tenant")
    return name


def _insert_key(
    connection: Connection,
    born: NewKey,
    tenant: str,
    scopes: frozenset[Scope],
    description: str,
    expires_at: float | None,
) -> None:
    connection.execute(
        insert(API_KEYS).values(
            key_id=born.key_id,
            tenant=tenant,
            salt=born.salt,
            digest=born.digest,
            scopes=" ".join(sorted(scopes)),
            description=description,
            created_at=time.time(),
            expires_at=expires_at,
        )
    )


def _is_grant(owner: str, name: str, reader: str | None) -> sqlalchemy.ColumnElement[bool]:
    found = (GRANTS.c.owner == owner) & (GRANTS.c.name == name)
    return found if reader is None else found & (GRANTS.c.reader == reader)


def _no_tenant(name: str) -> TenantNotFoundError:
    return TenantNotFoundError(f"There is no tenant {name[:64]!r}", param="tenant")


def _no_key(key_id: str) -> ApiKeyNotFoundError:
    return ApiKeyNotFoundError(f"There is no living key {key_id[:64]!r}", param="key_id")
