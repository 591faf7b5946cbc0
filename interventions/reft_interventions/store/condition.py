"""What must be true of a name before a file is stored under it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InterventionPreconditionError
from .records import StoredVersion


@dataclass(frozen=True)
class PutCondition:
    """Checked under the lock that orders writers: between two writers with the same condition, one fails.

    Args:
        must_be_new: the name has no living version.
        must_exist: it has one.
        content_hashes: and its newest version's content is one of these; None = any.
    """

    must_be_new: bool = False
    must_exist: bool = False
    content_hashes: frozenset[str] | None = None

    def check(self, name: str, newest: StoredVersion | None) -> None:
        """Raises `InterventionPreconditionError` where it does not hold."""
        if newest is None:
            if self.must_exist or self.content_hashes is not None:
                raise InterventionPreconditionError(f"there is no {name!r} to replace", param="name")
        elif self.must_be_new:
            raise InterventionPreconditionError(
                f"{name!r} exists: its newest version is {newest.version}", param="name"
            )
        elif self.content_hashes is not None and newest.content_hash not in self.content_hashes:
            raise InterventionPreconditionError(
                f"the newest version of {name!r} is now {newest.version}, {newest.content_hash}: look at it, and "
                "upload again with its hash",
                param="name",
            )
