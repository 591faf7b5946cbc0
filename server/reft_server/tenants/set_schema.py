"""The tables of what is said about intervention sets: aliases, descriptions, labels, model cards, provenance.

No foreign keys: the sets themselves are in the store. `owner` is a tenant, `name` a set of its namespace.
"""

from __future__ import annotations

from sqlalchemy import Column, Float, Integer, String, Table, Text

from .schema import METADATA

SET_ALIASES = Table(
    "set_aliases",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("version", Integer, nullable=False),
    Column("moved_at", Float, nullable=False),
)
# What an alias named before, the latest last: what a rollback goes back to.
SET_ALIAS_HISTORY = Table(
    "set_alias_history",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("owner", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("alias", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("moved_at", Float, nullable=False),
)
# `labels` is a JSON object of texts; `card` is markdown, which the snapshot does not read.
SET_NOTES = Table(
    "set_notes",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("description", Text),
    Column("labels", Text, nullable=False),
    Column("card", Text),
)
# Where a version comes from; `details` is a JSON object. Written once.
SET_PROVENANCE = Table(
    "set_provenance",
    METADATA,
    Column("owner", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("source", String(16), nullable=False),
    Column("key_id", String(16)),
    Column("details", Text, nullable=False),
)
SET_TABLES = (SET_ALIASES, SET_ALIAS_HISTORY, SET_NOTES, SET_PROVENANCE)
# Requests that must not be done twice, and their answers; `status` null = it is being done.
IDEMPOTENCY_KEYS = Table(
    "idempotency_keys",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("status", Integer),
    Column("body", Text),
)
