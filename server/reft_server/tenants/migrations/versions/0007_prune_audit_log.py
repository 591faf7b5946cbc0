"""Old entries of the audit log may go, once an entry in the log says so: the database checks that there is one."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

_REFUSAL = "entries of the audit log are only ever added"
_IS_PRUNED = (
    "EXISTS (SELECT 1 FROM audit_log WHERE action = 'audit.prune' AND id > OLD.id AND CAST(target AS BIGINT) >= OLD.id)"
)


def upgrade() -> None:
    """An index that finds the entries of a kind, and a trigger that lets go what such an entry covers."""
    op.create_index("ix_audit_log_action", "audit_log", ["action"])
    if op.get_context().dialect.name == "postgresql":
        op.execute(
            "CREATE OR REPLACE FUNCTION reft_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF TG_OP = 'DELETE' THEN IF {_IS_PRUNED} THEN RETURN OLD; END IF; END IF; "
            f"RAISE EXCEPTION '{_REFUSAL}'; END $$"
        )
        return
    op.execute("DROP TRIGGER audit_log_is_append_only_delete")
    op.execute(
        f"CREATE TRIGGER audit_log_is_append_only_delete BEFORE DELETE ON audit_log WHEN NOT {_IS_PRUNED} "
        f"BEGIN SELECT RAISE(ABORT, '{_REFUSAL}'); END"
    )
