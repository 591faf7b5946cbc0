"""Writes what is said about intervention sets, and reads what the snapshot leaves out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy
from sqlalchemy import Connection, Table, delete, insert, select, update

from reft_interventions.errors import InterventionConflictError, InterventionNotFoundError
from reft_interventions.store import StoredVersion, check_alias
from reft_server.errors import InvalidRequestError
from reft_server.request_context import current_request

from .directory import TenantDirectory
from .set_notes import SetNotes
from .set_schema import SET_ALIAS_HISTORY, SET_ALIASES, SET_NOTES, SET_PROVENANCE, SET_TABLES

logger = logging.getLogger(__name__)

MAX_LABELS = 64
_NUM_KEPT_MOVES = 100
"""Of one alias: how far back a rollback can go."""
Source = Literal["upload", "fine_tuning", "preload"]


@dataclass(frozen=True)
class Origin:
    """Where a version comes from.

    Args:
        details: what its owner says about it, or the job that trained it; JSON.
        key_id: of the API key that brought it; None = without one.
    """

    source: Source = "upload"
    details: Mapping[str, object] = field(default_factory=dict)
    key_id: str | None = None


@dataclass(frozen=True)
class AliasMove:
    """What an alias names, or named before. `moved_at` is Unix seconds."""

    version: int
    moved_at: float


class SetBook:
    """Aliases, descriptions, labels, model cards and provenance; every change is durable, and in the audit log.

    `owner` is the tenant whose set it is. That the set exists is the caller's business. All methods may be called from
    any thread, and wait for the database.

    Args:
        lives: whether a version of an owner's set lives, by its number; no alias is let name one that does not.
    """

    def __init__(
        self, directory: TenantDirectory, lives: Callable[[str, str, int], bool] = lambda *_version: True
    ) -> None:
        self._directory = directory
        self._lives = lives

    def notes(self, owner: str, name: str) -> SetNotes:
        """What the snapshot knows; nothing is read."""
        return self._directory.snapshot.sets.get((owner, name), SetNotes())

    def move_alias(self, owner: str, name: str, alias: str, version: int) -> int | None:
        """Let an alias name a version, from the next request on; returns what it named before.

        Raises:
            InvalidInterventionNameError: it can't be an alias.
            InterventionNotFoundError: the version has been deleted.
        """
        check_alias(alias)
        with (
            self._directory.exclusive(),  # another server may be deleting the version
            self._directory.change("alias.set", owner, f"{name}@{alias}", version=version) as connection,
        ):
            if not self._lives(owner, name, version):
                raise InterventionNotFoundError(f"version {version} of {name!r} has been deleted", param="version")
            before = _current(connection, owner, name, alias)
            if before is None:
                values = _of_alias(owner, name, alias) | {"version": version, "moved_at": time.time()}
                connection.execute(insert(SET_ALIASES).values(values))
            elif before.version != version:
                _remember(connection, owner, name, alias, before)
                _put(connection, owner, name, alias, AliasMove(version, time.time()))
        logger.info("alias_set version=%d", version)
        return None if before is None else before.version

    def roll_back(self, owner: str, name: str, alias: str) -> tuple[int, int]:
        """Let an alias name what it named before; returns (the version now, the version until now).

        Raises:
            InterventionNotFoundError: there is no such alias.
            InterventionConflictError: it has always named this version, or the one before was deleted.
        """
        is_alias = _is_alias(SET_ALIAS_HISTORY, owner, name, alias)
        with (
            self._directory.exclusive(),
            self._directory.change("alias.rollback", owner, f"{name}@{alias}") as connection,
        ):
            current = _current(connection, owner, name, alias)
            if current is None:
                raise no_alias(name, alias)
            latest = select(SET_ALIAS_HISTORY).where(is_alias).order_by(SET_ALIAS_HISTORY.c.id.desc()).limit(1)
            before = connection.execute(latest).first()
            if before is None:
                message = f"the alias {alias!r} of {name!r} named no version before {current.version}"
                raise InterventionConflictError(message, param="alias")
            if not self._lives(owner, name, before.version):
                message = f"the alias {alias!r} named version {before.version}, which was deleted: restore that first"
                raise InterventionConflictError(message, param="alias")
            connection.execute(delete(SET_ALIAS_HISTORY).where(SET_ALIAS_HISTORY.c.id == before.id))
            _put(connection, owner, name, alias, AliasMove(before.version, time.time()))
        logger.info("alias_rolled_back version=%d", before.version)
        return before.version, current.version

    def delete_alias(self, owner: str, name: str, alias: str) -> None:
        """Forget an alias and what it named before.

        Raises:
            InterventionNotFoundError: there is no such alias.
        """
        with self._directory.change("alias.delete", owner, f"{name}@{alias}") as connection:
            if _current(connection, owner, name, alias) is None:
                raise no_alias(name, alias)
            for table in (SET_ALIASES, SET_ALIAS_HISTORY):
                connection.execute(delete(table).where(_is_alias(table, owner, name, alias)))
        logger.info("alias_deleted")

    def alias_history(self, owner: str, name: str, alias: str) -> tuple[AliasMove, ...]:
        """What an alias names, and named before, the latest first.

        Raises:
            InterventionNotFoundError: there is no such alias.
        """
        is_alias = _is_alias(SET_ALIAS_HISTORY, owner, name, alias)
        with self._directory.reading() as connection:
            current = _current(connection, owner, name, alias)
            if current is None:
                raise no_alias(name, alias)
            rows = connection.execute(select(SET_ALIAS_HISTORY).where(is_alias).order_by(SET_ALIAS_HISTORY.c.id.desc()))
            return current, *(AliasMove(row.version, row.moved_at) for row in rows)

    def describe(self, owner: str, name: str, patch: Mapping[str, Any]) -> None:
        """Apply a JSON merge patch (RFC 7396) to a set's `description` and `labels`; null takes away."""
        with self._directory.change("set.describe", owner, name, fields=sorted(patch)) as connection:
            found = connection.execute(select(SET_NOTES.c.labels).where(_is_set(SET_NOTES, owner, name))).scalar()
            values: dict[str, str | None] = {}
            if "description" in patch:
                values["description"] = patch["description"]
            if "labels" in patch:
                labels = dict(json.loads(found or "{}")) | patch["labels"] if patch["labels"] is not None else {}
                kept = {key: value for key, value in labels.items() if value is not None}
                if len(kept) > MAX_LABELS:
                    raise InvalidRequestError(f"A set has at most {MAX_LABELS} labels", param="labels")
                values["labels"] = json.dumps(kept, sort_keys=True)
            _note(connection, owner, name, values)

    def set_card(self, owner: str, name: str, card: str | None) -> None:
        """Replace a set's model card, markdown; None = it has none."""
        with self._directory.change("set.card", owner, name) as connection:
            _note(connection, owner, name, {"card": card})

    def card(self, owner: str, name: str) -> str | None:
        """A set's model card, markdown."""
        with self._directory.reading() as connection:
            found = connection.execute(select(SET_NOTES.c.card).where(_is_set(SET_NOTES, owner, name))).scalar()
        return None if found is None else str(found)

    def note_origin(self, stored: StoredVersion, origin: Origin) -> None:
        """Write down where a version comes from; what is written already stays."""
        request = current_request()
        key_id = None if request is None else request.key_id
        where = _is_set(SET_PROVENANCE, stored.tenant, stored.name) & (SET_PROVENANCE.c.version == stored.version)
        with self._directory.writing() as connection:
            if connection.execute(select(SET_PROVENANCE.c.version).where(where)).first() is None:
                connection.execute(
                    insert(SET_PROVENANCE).values(
                        owner=stored.tenant,
                        name=stored.name,
                        version=stored.version,
                        source=origin.source,
                        key_id=key_id,
                        details=json.dumps(dict(origin.details)),
                    )
                )

    def origins(self, owner: str, name: str) -> dict[int, Origin]:
        """Where the versions of a set come from, by number; those from before this was written down are missing."""
        with self._directory.reading() as connection:
            rows = connection.execute(select(SET_PROVENANCE).where(_is_set(SET_PROVENANCE, owner, name)))
            return {row.version: Origin(row.source, json.loads(row.details), row.key_id) for row in rows}

    def forget(self, owner: str, name: str) -> None:
        """Forget everything about a set of which nothing can be restored any more; a part of its purge, for the log."""
        with self._directory.reading() as connection:
            is_known = any(
                connection.execute(select(table.c.name).where(_is_set(table, owner, name)).limit(1)).first()
                for table in SET_TABLES
            )
        if is_known:
            with self._directory.writing(is_in_snapshot=True) as connection:
                for table in SET_TABLES:
                    connection.execute(delete(table).where(_is_set(table, owner, name)))


def _note(connection: Connection, owner: str, name: str, values: Mapping[str, str | None]) -> None:
    if not values:
        return
    found = connection.execute(update(SET_NOTES).where(_is_set(SET_NOTES, owner, name)).values(**values))
    if not found.rowcount:
        connection.execute(insert(SET_NOTES).values({"owner": owner, "name": name, "labels": "{}", **values}))


def no_alias(name: str, alias: str) -> InterventionNotFoundError:
    """The error for an alias that a set does not have."""
    return InterventionNotFoundError(f"intervention {name!r} has no alias {alias[:64]!r}", param="version")


def _current(connection: Connection, owner: str, name: str, alias: str) -> AliasMove | None:
    row = connection.execute(select(SET_ALIASES).where(_is_alias(SET_ALIASES, owner, name, alias))).first()
    return None if row is None else AliasMove(row.version, row.moved_at)


def _put(connection: Connection, owner: str, name: str, alias: str, move: AliasMove) -> None:
    where = _is_alias(SET_ALIASES, owner, name, alias)
    connection.execute(update(SET_ALIASES).where(where).values(version=move.version, moved_at=move.moved_at))


def _remember(connection: Connection, owner: str, name: str, alias: str, move: AliasMove) -> None:
    values = _of_alias(owner, name, alias) | {"version": move.version, "moved_at": move.moved_at}
    connection.execute(insert(SET_ALIAS_HISTORY).values(values))
    ids = select(SET_ALIAS_HISTORY.c.id).where(_is_alias(SET_ALIAS_HISTORY, owner, name, alias))
    kept = connection.execute(ids.order_by(SET_ALIAS_HISTORY.c.id.desc()).limit(_NUM_KEPT_MOVES)).scalars().all()
    is_alias = _is_alias(SET_ALIAS_HISTORY, owner, name, alias)
    connection.execute(delete(SET_ALIAS_HISTORY).where(is_alias & (SET_ALIAS_HISTORY.c.id < min(kept))))


def _of_alias(owner: str, name: str, alias: str) -> dict[str, object]:
    return {"owner": owner, "name": name, "alias": alias}


def _is_set(table: Table, owner: str, name: str) -> sqlalchemy.ColumnElement[bool]:
    return (table.c.owner == owner) & (table.c.name == name)


def _is_alias(table: Table, owner: str, name: str, alias: str) -> sqlalchemy.ColumnElement[bool]:
    return _is_set(table, owner, name) & (table.c.alias == alias)
