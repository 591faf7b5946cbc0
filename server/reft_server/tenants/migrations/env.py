"""alembic's entry: it runs migrations on the connection that `alembic_config` was given, inside its transaction."""

from __future__ import annotations

from alembic import context

from reft_server.tenants.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    transactional_ddl=True,  # SQLite can too; alembic doubts it
    render_as_batch=True,  # SQLite can't alter a column: the table is copied
)
context.run_migrations()
