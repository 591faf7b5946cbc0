"""The operations on intervention sets as data: uploads, lists, aliases, notes, cards, trials."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel

from .calls import Call, FileBody, Progress, as_turns, target
from .errors import InvalidArgumentError
from .options import Messages
from .request_body import request_body
from .types import (
    Alias,
    AliasDeleted,
    AliasList,
    AliasRequest,
    DeleteResponse,
    InterventionComparison,
    InterventionComparisonRequest,
    InterventionInfo,
    InterventionList,
    InterventionPatch,
    InterventionTest,
    InterventionUpload,
    RestoreResponse,
    VersionList,
)

__all__ = ["UploadOptions"]

_ROOT = "/v1/interventions"


@dataclass(frozen=True)
class UploadOptions:
    """What an upload wants besides the file and the name; see `Interventions.upload`."""

    if_match: str | None = None
    must_be_new: bool = False
    content_hash: str | None = None
    provenance: Mapping[str, object] | None = None
    idempotency_key: str | None = None


def upload(path: Path, name: str, options: UploadOptions, on_progress: Progress | None) -> Call[InterventionUpload]:
    """`POST /v1/interventions`, the file as the raw body, with its checksum."""
    body = FileBody(path, on_progress)
    headers = {"content-digest": f"sha-256=:{_sha256(path)}:"}
    params = {"name": name}
    if options.if_match is not None:
        headers["if-match"] = options.if_match if options.if_match == "*" else f'"{options.if_match}"'
    if options.must_be_new:
        headers["if-none-match"] = "*"
    if options.idempotency_key is not None:
        headers["idempotency-key"] = options.idempotency_key
    if options.content_hash is not None:
        params["content_hash"] = options.content_hash
    if options.provenance is not None:
        params["provenance"] = _json(options.provenance)
    return Call(
        "POST",
        _ROOT,
        InterventionUpload,
        params=params,
        headers=headers,
        body=body,
        is_idempotent=options.idempotency_key is not None,
    )


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return base64.b64encode(hashlib.file_digest(file, "sha256").digest()).decode()
    except OSError as error:
        raise InvalidArgumentError(f"can't read {path}: {error.strerror}") from error


def _json(value: Mapping[str, object]) -> str:
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"not JSON: {error}") from error


def list_interventions(
    label: str | None, limit: int | None, after: str | None, *, deleted: bool
) -> Call[InterventionList]:
    """`GET /v1/interventions`."""
    params = _page(limit, after, deleted=deleted) | ({} if label is None else {"label": label})
    return Call("GET", _ROOT, InterventionList, params=params, is_idempotent=True)


def list_versions(name: str, limit: int | None, after: str | None, *, deleted: bool) -> Call[VersionList]:
    """`GET /v1/interventions/{name}/versions`."""
    path, params = target(name)
    return Call(
        "GET",
        f"{path}/versions",
        VersionList,
        params=params | _page(limit, after, deleted=deleted),
        is_idempotent=True,
    )


def _page(limit: int | None, after: str | None, *, deleted: bool) -> dict[str, str]:
    params = {} if limit is None else {"limit": str(limit)}
    params |= {} if after is None else {"after": after}
    return params | ({"deleted": "true"} if deleted else {})


def delete_intervention(name: str, version: int | str | None, *, purge: bool) -> Call[DeleteResponse]:
    """`DELETE /v1/interventions/{name}`. Sent once more it would answer 404, so it is not repeated midway."""
    path, params = target(name, version)
    return Call("DELETE", path, DeleteResponse, params=params | ({"purge": "true"} if purge else {}))


def restore(name: str, version: int | str | None) -> Call[RestoreResponse]:
    """`POST /v1/interventions/{name}/restore`."""
    path, params = target(name, version)
    return Call("POST", f"{path}/restore", RestoreResponse, params=params)


def describe(name: str, description: str | None, labels: Mapping[str, str | None] | None) -> Call[InterventionInfo]:
    """`PATCH /v1/interventions/{name}`; what is None stays as it is."""
    path, params = target(name)
    given = {"description": description, "labels": labels}
    body = request_body(InterventionPatch, {key: value for key, value in given.items() if value is not None})
    return Call("PATCH", path, InterventionInfo, params=params, body=body, is_idempotent=True)


def list_aliases(name: str) -> Call[AliasList]:
    """`GET /v1/interventions/{name}/aliases`."""
    path, params = target(name)
    return Call("GET", f"{path}/aliases", AliasList, params=params, is_idempotent=True)


def get_alias(name: str, alias: str) -> Call[Alias]:
    """`GET /v1/interventions/{name}/aliases/{alias}`."""
    path, params = target(name)
    return Call("GET", _alias_path(path, alias), Alias, params=params, is_idempotent=True)


def promote(name: str, alias: str, version: int | str) -> Call[Alias]:
    """`PUT /v1/interventions/{name}/aliases/{alias}`."""
    path, params = target(name)
    body = request_body(AliasRequest, {"version": version})
    return Call("PUT", _alias_path(path, alias), Alias, params=params, body=body, is_idempotent=True)


def roll_back(name: str, alias: str, idempotency_key: str) -> Call[Alias]:
    """`POST /v1/interventions/{name}/aliases/{alias}/rollback`: with its key it goes one step, however often sent."""
    path, params = target(name)
    headers = {"idempotency-key": idempotency_key}
    path = f"{_alias_path(path, alias)}/rollback"
    return Call("POST", path, Alias, params=params, headers=headers, is_idempotent=True)


def delete_alias(name: str, alias: str) -> Call[AliasDeleted]:
    """`DELETE /v1/interventions/{name}/aliases/{alias}`."""
    path, params = target(name)
    return Call("DELETE", _alias_path(path, alias), AliasDeleted, params=params)


def _alias_path(path: str, alias: str) -> str:
    return f"{path}/aliases/{quote(alias, safe='')}"


def get_card(name: str) -> Call[BaseModel]:
    """`GET /v1/interventions/{name}/card`; the answer is markdown."""
    path, params = target(name)
    return Call("GET", f"{path}/card", BaseModel, params=params, accept="text/markdown", is_idempotent=True)


def set_card(name: str, card: str | None) -> Call[InterventionInfo]:
    """`PUT /v1/interventions/{name}/card`, or `DELETE` for None."""
    path, params = target(name)
    if card is None:
        return Call("DELETE", f"{path}/card", InterventionInfo, params=params, is_idempotent=True)
    headers = {"content-type": "text/markdown"}
    return Call(
        "PUT",
        f"{path}/card",
        InterventionInfo,
        params=params,
        headers=headers,
        body=card.encode(),
        is_idempotent=True,
    )


def run_test(name: str, version: int | str | None) -> Call[InterventionTest]:
    """`POST /v1/interventions/{name}/test`."""
    path, params = target(name, version)
    return Call("POST", f"{path}/test", InterventionTest, params=params, is_idempotent=True)


def compare(
    name: str, version: int | str | None, messages: Messages | None, fields: Mapping[str, Any]
) -> Call[InterventionComparison]:
    """`POST /v1/interventions/{name}/compare`; a text for `messages` is a user's."""
    path, params = target(name, version)
    turns = None if messages is None else as_turns(messages)
    body = request_body(InterventionComparisonRequest, {"messages": turns, **fields})
    return Call("POST", f"{path}/compare", InterventionComparison, params=params, body=body)
