"""Entity tags and conditional requests: `ETag`, `If-Match`, `If-None-Match` (RFC 9110)."""

from __future__ import annotations

import re

from reft_interventions.store import PutCondition
from reft_server.errors import InvalidRequestError

_TAG = re.compile(r'(?:W/)?"([\x21\x23-\x7e]*)"')


def etag(content_hash: str) -> str:
    """The entity tag of a set: its content hash."""
    return f'"{content_hash}"'


def is_listed(content_hash: str, header: str) -> bool:
    """Whether an `If-None-Match` names this content; a header that can't be read names none."""
    return header.strip() == "*" or content_hash in _TAG.findall(header)


def put_condition(if_match: str | None, if_none_match: str | None) -> PutCondition:
    """What a name must hold for an upload with these headers.

    Raises:
        InvalidRequestError: they can't be read, or are meant otherwise than an upload can mean them.
    """
    if if_none_match is not None and if_none_match.strip() != "*":
        raise InvalidRequestError("An upload knows only If-None-Match: *", param="if-none-match")
    if if_match is None:
        return PutCondition(must_be_new=if_none_match is not None)
    if if_none_match is not None:
        raise InvalidRequestError("If-Match and If-None-Match contradict each other", param="if-match")
    if if_match.strip() == "*":
        return PutCondition(must_exist=True)
    tags = [part.strip() for part in if_match.split(",")]
    if not all(_TAG.fullmatch(tag) for tag in tags):
        raise InvalidRequestError('If-Match takes entity tags in quotes, such as "sha256:…"', param="if-match")
    # A weak tag never matches: If-Match compares strongly.
    return PutCondition(content_hashes=frozenset(tag.strip('"') for tag in tags if not tag.startswith("W/")))
