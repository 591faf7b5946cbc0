"""The tables of tenants, keys and grants, in SQLAlchemy's words: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import BigInteger, Column, Float, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text

from .model import TenantLimits

METADATA = MetaData()
OUTLIVES_TENANT = "outlives_tenant"
"""Marks a table whose rows stay when the tenant that their column `tenant` or `owner` names is deleted."""

TENANTS = Table(
    "tenants",
    METADATA,
    Column("name", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
    *(Column(limit.name, BigInteger) for limit in fields(TenantLimits)),
)
API_KEYS = Table(
    "api_keys",
    METADATA,
    Column("key_id", String(16), primary_key=True),
    Column("tenant", String(64), ForeignKey("tenants.name"), nullable=False, index=True),
    Column("salt", LargeBinary(16), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("description", String(256), nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)
# `reader` is no foreign key: whether a tenant exists must not show when somebody grants it something.
GRANTS = Table(
    "grants",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("reader", String(64), primary_key=True),
    Column("created_at", Float, nullable=False),
)
# Every definition that a route has had; `definition` is JSON, `previous` what was in force when it was made.
ROUTE_REVISIONS = Table(
    "route_revisions",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("task", String(64), primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("previous", Integer),
    Column("definition", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)
# Which revision of a route is in force.
ROUTES = Table(
    "routes",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("task", String(64), primary_key=True),
    Column("revision", Integer, nullable=False),
)
# Only ever added to, and pruned from its beginning by an entry that says so. `at` is Unix seconds, `details` a JSON
# object. No foreign keys: it outlives what it names.
AUDIT_LOG = Table(
    "audit_log",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("at", Float, nullable=False, index=True),
    Column("actor", String(64), nullable=False),
    Column("key_id", String(16)),
    Column("request_id", String(128)),
    Column("action", String(64), nullable=False, index=True),
    Column("tenant", String(64), nullable=False, index=True),
    Column("target", String(256), nullable=False),
    Column("details", Text, nullable=False),
    sqlite_autoincrement=True,  # a number is never used twice
    info={OUTLIVES_TENANT: True},
)
# One row. Every write adds 1 first, which also puts writers in a queue; readers look at nothing else until it changes.
REVISION = Table(
    "tenants_revision", METADATA, Column("id", Integer, primary_key=True), Column("revision", Integer, nullable=False)
)
