"""Everything that servers keep in a store and its database, brought to another store and database."""

from __future__ import annotations

from sqlalchemy import Connection, Table, delete, func, insert, select

from reft_interventions.errors import StoreError
from reft_interventions.store import InterventionStore
from reft_interventions.store.copying import CopyReport
from reft_server.tenants import SHARED, TenantDirectory
from reft_server.tenants.audit import record
from reft_server.tenants.migrations.schemas import all_tables
from reft_server.tenants.schema import REVISION, TENANTS

from .schema import VERSIONS, VERSIONS_REVISION

_NOT_COPIED = frozenset({REVISION.name, VERSIONS.name, VERSIONS_REVISION.name})
"""Counters of each database by itself, and what the store's catalog copies."""
_NUM_ROWS = 1000


def copy_everything(
    source: tuple[InterventionStore, TenantDirectory], target: tuple[InterventionStore, TenantDirectory]
) -> CopyReport:
    """Copy versions and files, then tenants, keys, grants, routes, aliases, notes and the audit log.

    If it fails half-way, it can be done again: the database's tables come last, in one transaction. What servers write
    meanwhile may be missed.

    Raises:
        StoreError: the target has something of its own, or either of them can't be used.
    """
    with target[1].reading() as connection:
        _check_empty(connection)
    report = source[0].copy_to(target[0])
    with source[1].reading() as old, target[1].writing(is_in_snapshot=True) as new:
        _check_empty(new)
        new.execute(delete(TENANTS))
        for table in _tables():
            for rows in old.execute(select(table)).partitions(_NUM_ROWS):
                new.execute(insert(table), [dict(row._mapping) for row in rows])
            _go_on_counting(new, table)
        details = {"num_versions": report.num_versions, "num_files": report.num_files}
        record(new, target[1].actor, "store.copy", SHARED, "", details)
    return report


def _tables() -> list[Table]:
    return [table for table in all_tables().sorted_tables if table.name not in _NOT_COPIED]


def _check_empty(connection: Connection) -> None:
    for table in _tables():
        rows = select(table) if table is not TENANTS else select(table).where(TENANTS.c.name != SHARED)
        if connection.execute(rows.limit(1)).first() is not None:
            raise StoreError(f"the target's table {table.name} is not empty: copy into a new database")


def _go_on_counting(connection: Connection, table: Table) -> None:
    """PostgreSQL counts for itself, and not what comes with a number."""
    column = table.autoincrement_column
    if connection.dialect.name == "postgresql" and column is not None:
        last = select(func.max(column)).scalar_subquery()
        sequence = func.pg_get_serial_sequence(table.name, column.name)
        connection.execute(select(func.setval(sequence, last)))
