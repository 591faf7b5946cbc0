"""What the snapshot knows about a set besides its files: description, labels, aliases."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from sqlalchemy import Connection, select

from .set_schema import SET_ALIASES, SET_NOTES

_NOTHING: Mapping[str, int] = MappingProxyType({})
_NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class SetNotes:
    """Of one name.

    Args:
        description: None = the one in the set's manifest.
        aliases: the version that each alias names.
    """

    description: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS)
    aliases: Mapping[str, int] = field(default_factory=lambda: _NOTHING)


def read_set_notes(connection: Connection) -> Mapping[tuple[str, str], SetNotes]:
    """The notes of every set that has any, by (owner, name)."""
    aliases: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for row in connection.execute(select(SET_ALIASES).order_by(SET_ALIASES.c.alias)):
        aliases[row.owner, row.name][row.alias] = row.version
    notes = {one: SetNotes(aliases=MappingProxyType(versions)) for one, versions in aliases.items()}
    columns = (SET_NOTES.c.owner, SET_NOTES.c.name, SET_NOTES.c.description, SET_NOTES.c.labels)
    for row in connection.execute(select(*columns)):
        labels = MappingProxyType(dict(json.loads(row.labels)))
        notes[row.owner, row.name] = SetNotes(
            row.description, labels, notes.get((row.owner, row.name), SetNotes()).aliases
        )
    return MappingProxyType(notes)
