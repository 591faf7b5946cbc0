"""The table of versions, beside those of the tenants."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Connection, Float, Integer, String, Table, Text, event, insert

from reft_server.tenants.schema import METADATA, OUTLIVES_TENANT

# No row is ever deleted: numbers are not used again. `revision` is the store's when the row was last written, so that
# servers read only what they have not seen. The other columns are those of `StoredVersion`.
VERSIONS = Table(
    "versions",
    METADATA,
    Column("tenant", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("content_hash", String(71), nullable=False, index=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("manifest_json", Text, nullable=False),
    Column("deleted_at", Float),
    Column("purged_at", Float),
    Column("revision", BigInteger, nullable=False, index=True),
    info={OUTLIVES_TENANT: True},
)
# One row. A writer adds 1 first, which also puts writers in a queue: revisions become visible in their order.
VERSIONS_REVISION = Table(
    "versions_revision",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)


def _insert_first(_table: Table, connection: Connection, **_options: object) -> None:
    connection.execute(insert(VERSIONS_REVISION).values(id=1, revision=1))


event.listen(VERSIONS_REVISION, "after_create", _insert_first)  # as the migration does
