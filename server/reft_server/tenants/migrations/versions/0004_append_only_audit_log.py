"""Append-only audit log: the database itself refuses to change or remove an entry."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

_REFUSAL = "entries of the audit log are only ever added"


def upgrade() -> None:
    """Triggers. On SQLite a migration that copies the table has to make them again."""
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE FUNCTION reft_refuse_change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        for event, each in (("UPDATE OR DELETE", "ROW"), ("TRUNCATE", "STATEMENT")):
            op.execute(
                f"CREATE TRIGGER audit_log_is_append_only_{each.lower()} BEFORE {event} ON audit_log "
                f"FOR EACH {each} EXECUTE FUNCTION reft_refuse_change()"
            )
        return
    for event, condition in (
        ("UPDATE", ""),
        ("DELETE", ""),
        ("INSERT", "WHEN EXISTS (SELECT 1 FROM audit_log WHERE id = NEW.id)"),  # INSERT OR REPLACE
    ):
        op.execute(
            f"CREATE TRIGGER audit_log_is_append_only_{event.lower()} BEFORE {event} ON audit_log {condition} "
            f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
        )
