"""`python -m reft_server.tenants.migrations 'Add routes'`: write the next migration from what the models have new."""

from __future__ import annotations

import sys

from alembic import command
from alembic.script import ScriptDirectory

from reft_server.tenants.database import memory_engine

from .schemas import all_tables
from .upgrade import alembic_config


def main(message: str) -> None:
    """Compare the models with a database that has every migration."""
    all_tables()
    with memory_engine().begin() as connection:
        config = alembic_config(connection)
        command.upgrade(config, "head")
        last = ScriptDirectory.from_config(config).get_current_head()
        command.revision(config, message, autogenerate=True, rev_id=f"{int(last or 0) + 1:04}")


if __name__ == "__main__":
    main(sys.argv[1])
