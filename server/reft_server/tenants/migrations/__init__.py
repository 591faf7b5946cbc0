"""How the tables came to be, step by step, with alembic: a database of any age is brought up to date at the start.

A table or column is added in three steps:

1. Declare it on `tenants.schema.METADATA`, in a module whose name ends with `schema`.
2. `make migration MESSAGE='Add routes'` writes `versions/<number>_add_routes.py`, by comparing the models with what the
   migrations make. Read it: alembic sees neither triggers nor a rename, nor what should happen to the rows.
3. `tests/unit/server/test_migrations.py` fails while models and migrations differ, and while two branches have added
   the same number: the later one then takes the next number, and names the other in `down_revision`.

A migration that has been released is never changed. There is no way back down: a backup is.
"""

from __future__ import annotations

from .upgrade import alembic_config, upgrade

__all__ = ["alembic_config", "upgrade"]
