"""Bring a database up to date, whoever else is at it."""

from __future__ import annotations

import logging
from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from reft_interventions.errors import StoreError

logger = logging.getLogger(__name__)

FIRST_REVISION = "0001"
"""What databases have that were made before there were migrations."""
_LOCK = 0x52654654
"""PostgreSQL's number for our lock: "ReFT". Servers that start together migrate one after the other."""


def alembic_config(connection: Connection) -> Config:
    """alembic's settings, for commands that run on `connection`, in its transaction."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def upgrade(connection: Connection) -> None:
    """Run the migrations that the database lacks, all or none of them; the caller commits.

    Raises:
        StoreError: the database was written by a newer release.
        SQLAlchemyError: it can't be used.
    """
    _lock(connection)
    config = alembic_config(connection)
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    if current is None and sqlalchemy.inspect(connection).has_table("tenants"):
        command.stamp(config, FIRST_REVISION)
    elif current is not None and current not in {found.revision for found in script.walk_revisions()}:
        raise StoreError(f"the database was written by a newer release (revision {current})")
    command.upgrade(config, "head")
    logger.info("database_upgraded from=%s to=%s", current, script.get_current_head())


def _lock(connection: Connection) -> None:
    """One migration at a time, until the transaction ends; SQLite's has begun with its lock."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
