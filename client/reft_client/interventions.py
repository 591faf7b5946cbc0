"""The intervention sets on the server: `client.interventions`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from . import calls, set_calls
from .calls import Progress
from .options import Messages, Prompt
from .set_calls import UploadOptions
from .transports import Transport
from .types import (
    Alias,
    AliasDeleted,
    AliasList,
    DeleteResponse,
    Grant,
    GrantDeleted,
    GrantList,
    InterventionComparison,
    InterventionInfo,
    InterventionList,
    InterventionTest,
    InterventionUpload,
    RestoreResponse,
    VersionList,
)


class Interventions:
    """The intervention sets on the server: `client.interventions`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(
        self,
        path: str | PathLike[str],
        name: str | None = None,
        *,
        if_match: str | None = None,
        must_be_new: bool = False,
        content_hash: str | None = None,
        provenance: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        on_progress: Progress | None = None,
    ) -> InterventionUpload:
        """Upload a file; under a name that exists it becomes the next version. The server tests it first.

        Its checksum goes along, so that what is stored is what was read here.

        Args:
            name: None = the file's name without its suffix.
            if_match: the content hash that the newest version must have now; `*` = there must be one.
            must_be_new: the name must have no version.
            content_hash: what the server must count for this file.
            provenance: what you want to know later of where this is from.
            idempotency_key: with the same one it is done once, so that it may be sent again when the connection breaks.
            on_progress: called with (bytes sent, bytes in all).

        Raises:
            InvalidArgumentError: the file can't be read.
            PreconditionFailedError: the name does not hold what `if_match` or `must_be_new` says.
            APIStatusError: the server refused it; nothing was stored.
        """
        file = Path(path)
        options = UploadOptions(if_match, must_be_new, content_hash, provenance, idempotency_key)
        return self._transport.send(set_calls.upload(file, file.stem if name is None else name, options, on_progress))

    def list(
        self, *, label: str | None = None, limit: int | None = None, after: str | None = None, deleted: bool = False
    ) -> InterventionList:
        """The newest version of every intervention, at most 1,000 at once.

        Args:
            label: `key`, `key=value`, several with commas: all must hold.
            limit, after: a page; `after` is the `last_id` of the page before.
            deleted: what can be restored instead.
        """
        return self._transport.send(set_calls.list_interventions(label, limit, after, deleted=deleted))

    def get(self, name: str, version: int | str | None = None) -> InterventionInfo:
        """One version; None = the newest. `name` may also be `name@version` or `name@alias`."""
        return self._transport.send(calls.get_intervention(name, version))

    def versions(
        self, name: str, *, limit: int | None = None, after: str | None = None, deleted: bool = False
    ) -> VersionList:
        """Every version, oldest first; or those that can be restored. Pages as for `list`."""
        return self._transport.send(set_calls.list_versions(name, limit, after, deleted=deleted))

    def delete(self, name: str, version: int | str | None = None, *, purge: bool = False) -> DeleteResponse:
        """Delete one version; None = all of them. Requests that run with it finish.

        Args:
            purge: nothing of it can be restored, nor what was deleted before.
        """
        return self._transport.send(set_calls.delete_intervention(name, version, purge=purge))

    def restore(self, name: str, version: int | str | None = None) -> RestoreResponse:
        """Bring one deleted version back; None = what the latest delete of that name took."""
        return self._transport.send(set_calls.restore(name, version))

    def describe(
        self, name: str, *, description: str | None = None, labels: Mapping[str, str | None] | None = None
    ) -> InterventionInfo:
        """Change what is said about a set; what is not given stays as it is.

        Args:
            description: empty = none.
            labels: by key; None takes one away.
        """
        return self._transport.send(set_calls.describe(name, description, labels))

    def aliases(self, name: str) -> AliasList:
        """The aliases of a set, and the versions that they name."""
        return self._transport.send(set_calls.list_aliases(name))

    def alias(self, name: str, alias: str) -> Alias:
        """What an alias names, and named before."""
        return self._transport.send(set_calls.get_alias(name, alias))

    def promote(self, name: str, alias: str, version: int | str) -> Alias:
        """Let an alias name a version, from the next request on; `version` may be another alias."""
        return self._transport.send(set_calls.promote(name, alias, version))

    def rollback(self, name: str, alias: str) -> Alias:
        """Let an alias name what it named before; one step, even if it has to be sent again."""
        return self._transport.send(set_calls.roll_back(name, alias, uuid.uuid4().hex))

    def delete_alias(self, name: str, alias: str) -> AliasDeleted:
        """Forget an alias; the version lives on."""
        return self._transport.send(set_calls.delete_alias(name, alias))

    def card(self, name: str) -> str:
        """The model card, in markdown: the owner's, or one made of the facts."""
        return self._transport.text(set_calls.get_card(name))

    def set_card(self, name: str, card: str | None) -> InterventionInfo:
        """Write the model card; None takes it away."""
        return self._transport.send(set_calls.set_card(name, card))

    def test(self, name: str, version: int | str | None = None) -> InterventionTest:
        """Run the self-test of the upload again: `UnprocessableEntityError` where it fails."""
        return self._transport.send(set_calls.run_test(name, version))

    def compare(
        self,
        name: str,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        version: int | str | None = None,
        against: str | None = None,
        **options: Any,
    ) -> InterventionComparison:
        """The same prompt, or conversation, answered by the base model and by the set, with the same seed.

        Args:
            against: another set or version in the place of the base model.
            options: `max_tokens`, `temperature`, `seed`, `scale` and the like.
        """
        fields = {"prompt": prompt, "against": against, **options}
        return self._transport.send(set_calls.compare(name, version, messages, fields))

    def grants(self, name: str) -> GrantList:
        """The tenants that may use a set of the caller's."""
        return self._transport.send(calls.list_grants(name))

    def grant(self, name: str, tenant: str) -> Grant:
        """Let another tenant use all versions of a set, under `<owner>/<name>`."""
        return self._transport.send(calls.create_grant(name, tenant))

    def withdraw(self, name: str, tenant: str) -> GrantDeleted:
        """Take a grant back; one that was not there is no error."""
        return self._transport.send(calls.delete_grant(name, tenant))

    def download(
        self,
        name: str,
        path: str | PathLike[str],
        version: int | str | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> Path:
        """Save a version as a file, whole or not at all; an existing file is replaced."""
        return self._transport.save(calls.download_intervention(name, version), Path(path), on_progress)
