"""The intervention sets on the server, awaited: `client.interventions` of the asynchronous client."""

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
from .transports import AsyncTransport
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


class AsyncInterventions:
    """`Interventions` with `await`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(
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
        """See `Interventions.upload`."""
        file = Path(path)
        options = UploadOptions(if_match, must_be_new, content_hash, provenance, idempotency_key)
        return await self._transport.send(
            set_calls.upload(file, file.stem if name is None else name, options, on_progress)
        )

    async def list(
        self, *, label: str | None = None, limit: int | None = None, after: str | None = None, deleted: bool = False
    ) -> InterventionList:
        """See `Interventions.list`."""
        return await self._transport.send(set_calls.list_interventions(label, limit, after, deleted=deleted))

    async def get(self, name: str, version: int | str | None = None) -> InterventionInfo:
        """See `Interventions.get`."""
        return await self._transport.send(calls.get_intervention(name, version))

    async def versions(
        self, name: str, *, limit: int | None = None, after: str | None = None, deleted: bool = False
    ) -> VersionList:
        """See `Interventions.versions`."""
        return await self._transport.send(set_calls.list_versions(name, limit, after, deleted=deleted))

    async def delete(self, name: str, version: int | str | None = None, *, purge: bool = False) -> DeleteResponse:
        """See `Interventions.delete`."""
        return await self._transport.send(set_calls.delete_intervention(name, version, purge=purge))

    async def restore(self, name: str, version: int | str | None = None) -> RestoreResponse:
        """See `Interventions.restore`."""
        return await self._transport.send(set_calls.restore(name, version))

    async def describe(
        self, name: str, *, description: str | None = None, labels: Mapping[str, str | None] | None = None
    ) -> InterventionInfo:
        """See `Interventions.describe`."""
        return await self._transport.send(set_calls.describe(name, description, labels))

    async def aliases(self, name: str) -> AliasList:
        """See `Interventions.aliases`."""
        return await self._transport.send(set_calls.list_aliases(name))

    async def alias(self, name: str, alias: str) -> Alias:
        """See `Interventions.alias`."""
        return await self._transport.send(set_calls.get_alias(name, alias))

    async def promote(self, name: str, alias: str, version: int | str) -> Alias:
        """See `Interventions.promote`."""
        return await self._transport.send(set_calls.promote(name, alias, version))

    async def rollback(self, name: str, alias: str) -> Alias:
        """See `Interventions.rollback`."""
        return await self._transport.send(set_calls.roll_back(name, alias, uuid.uuid4().hex))

    async def delete_alias(self, name: str, alias: str) -> AliasDeleted:
        """See `Interventions.delete_alias`."""
        return await self._transport.send(set_calls.delete_alias(name, alias))

    async def card(self, name: str) -> str:
        """See `Interventions.card`."""
        return await self._transport.text(set_calls.get_card(name))

    async def set_card(self, name: str, card: str | None) -> InterventionInfo:
        """See `Interventions.set_card`."""
        return await self._transport.send(set_calls.set_card(name, card))

    async def test(self, name: str, version: int | str | None = None) -> InterventionTest:
        """See `Interventions.test`."""
        return await self._transport.send(set_calls.run_test(name, version))

    async def compare(
        self,
        name: str,
        prompt: Prompt | None = None,
        *,
        messages: Messages | None = None,
        version: int | str | None = None,
        against: str | None = None,
        **options: Any,
    ) -> InterventionComparison:
        """See `Interventions.compare`."""
        fields = {"prompt": prompt, "against": against, **options}
        return await self._transport.send(set_calls.compare(name, version, messages, fields))

    async def grants(self, name: str) -> GrantList:
        """See `Interventions.grants`."""
        return await self._transport.send(calls.list_grants(name))

    async def grant(self, name: str, tenant: str) -> Grant:
        """See `Interventions.grant`."""
        return await self._transport.send(calls.create_grant(name, tenant))

    async def withdraw(self, name: str, tenant: str) -> GrantDeleted:
        """See `Interventions.withdraw`."""
        return await self._transport.send(calls.delete_grant(name, tenant))

    async def download(
        self,
        name: str,
        path: str | PathLike[str],
        version: int | str | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> Path:
        """See `Interventions.download`."""
        return await self._transport.save(calls.download_intervention(name, version), Path(path), on_progress)
