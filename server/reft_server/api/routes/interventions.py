"""`/v1/interventions`: list, show, describe, download, delete, restore."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.responses import Response, StreamingResponse

from reft_client.types import (
    DeleteResponse,
    InterventionInfo,
    InterventionList,
    InterventionPatch,
    RestoreResponse,
    VersionList,
)
from reft_interventions.store import StoredVersion
from reft_server.tenants import Caller
from reft_server.tenants.model import SHARED, tenant_of_wire_name, wire_name

from ..authentication import Reader, Upload
from ..conditions import etag, is_listed
from ..context import ApiContext, Context
from ..lookup import OwnerQuery, VersionQuery, check_owner, detailed_info, find, find_own, full_name, info, reference
from ..openapi import CONFLICT_RESPONSES, DOWNLOAD_RESPONSES, LOOKUP_RESPONSES
from ..paging import MAX_PAGE, ONE_OF_EACH, AfterQuery, LimitQuery, Page
from ..read_file import read_file

router = APIRouter(prefix="/v1/interventions", tags=["interventions"])

LabelQuery = Annotated[
    str | None,
    Query(max_length=1024, description="`key` or `key=value`; several with commas, and all must hold."),
]
DeletedQuery = Annotated[bool, Query(description="What can be restored, instead of what lives; the caller's own only.")]
PurgeQuery = Annotated[bool, Query(description="For good: nothing of it can be restored, nor what was deleted before.")]


@router.get("", summary="List interventions", dependencies=[ONE_OF_EACH])
async def list_interventions(
    caller: Reader,
    context: Context,
    limit: LimitQuery = MAX_PAGE,
    after: AfterQuery = None,
    label: LabelQuery = None,
    deleted: DeletedQuery = False,
) -> InterventionList:
    """The newest version of every name: the caller's own, the shared ones, and what other tenants granted."""
    return await asyncio.to_thread(_list, context, caller, limit, after, label.split(",") if label else (), deleted)


@router.get("/{name}", summary="Show one intervention", responses=LOOKUP_RESPONSES)
async def get_intervention(
    caller: Reader, context: Context, name: str, version: VersionQuery = None, tenant: OwnerQuery = None
) -> InterventionInfo:
    """The newest version, or the one asked for; and where it comes from."""
    return await detailed_info(context, caller, find(context, caller, name, tenant, version))


@router.patch("/{name}", summary="Describe and label a set", responses=LOOKUP_RESPONSES)
async def patch_intervention(caller: Upload, context: Context, name: str, body: InterventionPatch) -> InterventionInfo:
    """A JSON merge patch of `description` and `labels`: what is missing stays, null takes away. For all versions."""
    stored = find_own(context, caller, name)
    await asyncio.to_thread(
        context.sets.describe, stored.tenant, stored.name, body.model_dump(exclude_unset=True, mode="json")
    )
    return await detailed_info(context, caller, stored)


@router.get(
    "/{name}/versions",
    summary="List an intervention's versions",
    responses=LOOKUP_RESPONSES,
    dependencies=[ONE_OF_EACH],
)
async def list_versions(
    caller: Reader,
    context: Context,
    name: str,
    tenant: OwnerQuery = None,
    limit: LimitQuery = MAX_PAGE,
    after: Annotated[int, Query(ge=0, description="The `last_id` of the page before.")] = 0,
    deleted: DeletedQuery = False,
) -> VersionList:
    """Every version, oldest first."""
    return await asyncio.to_thread(_list_versions, context, caller, full_name(name, tenant), limit, after, deleted)


@router.get(
    "/{name}/download", summary="Download the file", responses=DOWNLOAD_RESPONSES, response_class=StreamingResponse
)
async def download_intervention(
    caller: Upload,
    context: Context,
    name: str,
    version: VersionQuery = None,
    tenant: OwnerQuery = None,
    if_none_match: Annotated[str | None, Header(max_length=4096)] = None,
) -> Response:
    """The stored file, byte for byte as it was uploaded. Its content hash is the `ETag`."""
    stored = find(context, caller, name, tenant, version)
    tag = {"etag": etag(stored.content_hash)}
    if if_none_match is not None and is_listed(stored.content_hash, if_none_match):
        return Response(status_code=304, headers=tag)
    file = await asyncio.to_thread(context.registry.open, stored)
    headers = {
        "content-length": str(os.fstat(file.fileno()).st_size),
        "content-disposition": f'attachment; filename="{stored.name}-v{stored.version}.safetensors"',
    }
    return StreamingResponse(read_file(file), headers=headers | tag, media_type="application/octet-stream")


@router.delete("/{name}", summary="Delete an intervention", responses=CONFLICT_RESPONSES)
async def delete_intervention(
    caller: Upload,
    context: Context,
    name: str,
    version: VersionQuery = None,
    tenant: OwnerQuery = None,
    purge: PurgeQuery = False,
) -> DeleteResponse:
    """One version, or without `version` all of them. Requests in flight finish with what they have.

    For a time they can be restored. A version that an alias names is kept.
    """
    check_owner(caller, name, tenant)
    ref = reference(name, version)
    deleted = await context.registry.delete(ref.name, ref.version, tenant=caller.tenant.name, is_final=purge)
    return DeleteResponse(name=ref.name, version=deleted[0].version if ref.version is not None else None)


@router.post("/{name}/restore", summary="Restore what was deleted", responses=LOOKUP_RESPONSES)
async def restore_intervention(
    caller: Upload, context: Context, name: str, version: VersionQuery = None, tenant: OwnerQuery = None
) -> RestoreResponse:
    """Undo the latest delete of a name, or restore one version; one that lives is left as it is. Grants are gone."""
    check_owner(caller, name, tenant)
    ref = reference(name, version)
    restored = await context.registry.restore(ref.name, ref.version, tenant=caller.tenant.name)
    by_version = sorted(restored, key=lambda stored: stored.version)
    return RestoreResponse(name=ref.name, data=tuple(info(context, caller, stored) for stored in by_version))


def _list(
    context: ApiContext, caller: Caller, limit: int, after: str | None, labels: Sequence[str], deleted: bool
) -> InterventionList:
    registry, tenant = context.registry, caller.tenant.name
    if deleted:
        found: Sequence[StoredVersion] = sorted(
            registry.deleted(tenant=tenant), key=lambda one: (one.name, one.version)
        )
    else:
        found = registry.list(tenant)
    found = [stored for stored in found if _has_labels(context, stored, labels)]

    def key(stored: StoredVersion) -> tuple[int, str, str, int]:
        return _key(stored.tenant, stored.name, stored.version if deleted else 0, tenant)

    start = None if after is None else _key_of_id(after, tenant)
    page = Page(found, key, limit, start)
    ids = [_id(stored, has_version=deleted) for stored in page.items]
    return InterventionList(
        data=tuple(info(context, caller, stored) for stored in page.items),
        has_more=page.has_more,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
    )


def _id(stored: StoredVersion, *, has_version: bool) -> str:
    full = f"{wire_name(stored.tenant)}/{stored.name}"
    return f"{full}@{stored.version}" if has_version else full


def _key_of_id(text: str, tenant: str) -> tuple[int, str, str, int]:
    """The key of a place in a list; a bare name is one of the caller's own."""
    full, _, version = text.partition("@")
    owner, slash, name = full.rpartition("/")
    owner = tenant_of_wire_name(owner) if slash else tenant
    return _key(owner, name, int(version) if version.isascii() and version.isdigit() else 0, tenant)


def _key(owner: str, name: str, version: int, tenant: str) -> tuple[int, str, str, int]:
    """What a tenant's list is ordered by: its own sets, the shared ones, those that others granted."""
    return 0 if owner == tenant else 1 if owner == SHARED else 2, owner, name, version


def _has_labels(context: ApiContext, stored: StoredVersion, wanted: Sequence[str]) -> bool:
    labels = context.registry.notes(stored).labels if wanted else {}
    pairs = [one.partition("=") for one in wanted]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def _list_versions(
    context: ApiContext, caller: Caller, name: str, limit: int, after: int, deleted: bool
) -> VersionList:
    registry, tenant = context.registry, caller.tenant.name
    found = registry.deleted(name, tenant=tenant) if deleted else registry.versions(name, tenant=tenant)
    by_number = sorted(found, key=lambda stored: stored.version)
    page = Page(by_number, lambda stored: stored.version, limit, after)
    return VersionList(
        name=name,
        data=tuple(info(context, caller, stored) for stored in page.items),
        has_more=page.has_more,
        first_id=str(page.items[0].version) if page.items else None,
        last_id=str(page.items[-1].version) if page.items else None,
    )
