"""What is said about intervention sets: aliases, descriptions, labels, provenance; and what is restored."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .base import Int, RequestModel, ResponseModel, Text
from .interventions import InterventionInfo

__all__ = [
    "Alias",
    "AliasDeleted",
    "AliasList",
    "AliasMove",
    "AliasRequest",
    "InterventionPatch",
    "RestoreResponse",
]

_MAX_LABELS = 64
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,62}[a-z0-9])?")


def _check_labels(labels: dict[str, Any]) -> dict[str, Any]:
    if len(labels) > _MAX_LABELS:
        raise ValueError(f"at most {_MAX_LABELS} labels")
    for key, value in labels.items():
        if _LABEL.fullmatch(key) is None:
            raise ValueError(
                f"{key[:64]!a} is no label: 1 to 64 characters out of a-z 0-9 . _ / -, at both ends a-z 0-9"
            )
        if value is not None and (not value.isprintable() or "," in value):
            raise ValueError(f"the value of {key!r} holds a comma or a control character")
    return labels


def _check_lines(text: str) -> str:
    if not all(line.isprintable() for line in text.replace("\t", " ").split("\n")):
        raise ValueError("holds a control character")
    return text


LabelValue = Annotated[Text, Field(max_length=256)]
LabelChanges = Annotated[dict[str, LabelValue | None], AfterValidator(_check_labels)]


class InterventionPatch(BaseModel):
    """Changes to what is said about a set; what is missing stays, null takes away (a JSON merge patch).

    Args:
        description: in the place of the one in the set's file; null = that one again.
        labels: by key; null takes one label away, null for all of them every one.
    """

    model_config = ConfigDict(frozen=True)

    description: Annotated[Text, Field(max_length=1024), AfterValidator(_check_lines)] | None = None
    labels: LabelChanges | None = None


class AliasRequest(RequestModel):
    """What an alias is to name: a version's number, `sha256:` and at least 12 hex digits, or another alias."""

    version: Annotated[Int, Field(ge=1)] | Annotated[Text, Field(min_length=1, max_length=128)]


class AliasMove(ResponseModel):
    """What an alias names, or named before, and since when (Unix time, seconds)."""

    version: int
    moved: int


class Alias(ResponseModel):
    """A name for one version of a set, which its owner moves.

    Args:
        previous: the version it named until this request moved it; None = it did not.
        history: what it names and named before, the latest first, where it was asked for.
    """

    object: Literal["intervention.alias"] = "intervention.alias"
    name: str
    alias: str
    version: int
    content_hash: str
    previous: int | None = None
    history: tuple[AliasMove, ...] | None = None


class AliasList(ResponseModel):
    """The aliases of a set, by name; those of deleted versions have no content hash."""

    object: Literal["list"] = "list"
    data: tuple[Alias, ...] = ()


class AliasDeleted(ResponseModel):
    """An alias that was deleted; the version lives on."""

    object: Literal["intervention.alias.deleted"] = "intervention.alias.deleted"
    name: str
    alias: str
    deleted: bool = True


class RestoreResponse(ResponseModel):
    """The versions that live again."""

    object: Literal["intervention.restored"] = "intervention.restored"
    name: str
    data: tuple[InterventionInfo, ...] = ()
