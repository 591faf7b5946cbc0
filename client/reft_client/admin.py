"""Tenants, their limits and keys, the audit log and the settings, over both clients: `client.admin`.

It needs a key with the scope `admin`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import quote

from .calls import Call
from .request_body import request_body
from .transports import AsyncTransport, Transport
from .types import (
    ApiKeyInfo,
    ApiKeyList,
    ApiKeyRequest,
    ApiKeyRotation,
    AuditLog,
    CreatedApiKey,
    SettingsReload,
    TenantDeleted,
    TenantInfo,
    TenantLimits,
    TenantList,
    TenantRequest,
)

__all__ = ["Admin", "AsyncAdmin"]

Order = Literal["asc", "desc"]
_TENANTS = "/v1/admin/tenants"
_SCOPES = ("infer", "upload")


class Admin:
    """What an operator does: `client.admin`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def tenants(self) -> TenantList:
        """Every tenant, by name."""
        return self._transport.send(_tenants())

    def tenant(self, name: str) -> TenantInfo:
        """One tenant, with its own limits."""
        return self._transport.send(_tenant(name))

    def create_tenant(self, name: str, limits: TenantLimits | Mapping[str, int | None] | None = None) -> TenantInfo:
        """Add a tenant.

        Raises:
            InvalidArgumentError: a limit that there is not, or that can't be; nothing was sent.
        """
        return self._transport.send(_create_tenant(name, limits))

    def set_limits(self, name: str, limits: TenantLimits | Mapping[str, int | None]) -> TenantInfo:
        """Replace all limits of a tenant; what is left out becomes the server's default. Raises as `create_tenant`."""
        return self._transport.send(_set_limits(name, limits))

    def delete_tenant(self, name: str) -> TenantDeleted:
        """Delete a tenant for good, with its keys, sets, routes, jobs and files. After a failure, call it again."""
        return self._transport.send(_delete_tenant(name))

    def keys(self, tenant: str) -> ApiKeyList:
        """A tenant's keys, oldest first, dead ones too."""
        return self._transport.send(_keys(tenant))

    def create_key(
        self,
        tenant: str,
        scopes: Sequence[str] = _SCOPES,
        *,
        description: str = "",
        expires_in_s: float | None = None,
    ) -> CreatedApiKey:
        """Make a key; the answer is the only place where it is ever shown.

        Raises:
            InvalidArgumentError: no such scope, or no such time; nothing was sent.
        """
        return self._transport.send(_create_key(tenant, scopes, description, expires_in_s))

    def rotate_key(self, key_id: str, *, overlap_s: float = 0.0) -> CreatedApiKey:
        """A new key with the same rights; the old one ends after `overlap_s` seconds."""
        return self._transport.send(_rotate_key(key_id, overlap_s))

    def revoke_key(self, key_id: str) -> ApiKeyInfo:
        """End a key now."""
        return self._transport.send(_revoke_key(key_id))

    def audit(
        self,
        *,
        limit: int = 100,
        after: int | None = None,
        order: Order = "desc",
        tenant: str | None = None,
        action: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> AuditLog:
        """A page of the audit log.

        Args:
            after: the `last_id` of the page before.
            order: desc = the newest first.
            action: `key.revoke`; `key.` is everything about keys.
            since, until: Unix seconds; `until` is not included.
        """
        return self._transport.send(_audit(limit, after, order, tenant, action, since, until))

    def reload(self) -> SettingsReload:
        """Let the server read its settings again: what changed, and what needs a restart."""
        return self._transport.send(_reload())


class AsyncAdmin:
    """`Admin` with `await`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def tenants(self) -> TenantList:
        """See `Admin.tenants`."""
        return await self._transport.send(_tenants())

    async def tenant(self, name: str) -> TenantInfo:
        """See `Admin.tenant`."""
        return await self._transport.send(_tenant(name))

    async def create_tenant(
        self, name: str, limits: TenantLimits | Mapping[str, int | None] | None = None
    ) -> TenantInfo:
        """See `Admin.create_tenant`."""
        return await self._transport.send(_create_tenant(name, limits))

    async def set_limits(self, name: str, limits: TenantLimits | Mapping[str, int | None]) -> TenantInfo:
        """See `Admin.set_limits`."""
        return await self._transport.send(_set_limits(name, limits))

    async def delete_tenant(self, name: str) -> TenantDeleted:
        """See `Admin.delete_tenant`."""
        return await self._transport.send(_delete_tenant(name))

    async def keys(self, tenant: str) -> ApiKeyList:
        """See `Admin.keys`."""
        return await self._transport.send(_keys(tenant))

    async def create_key(
        self,
        tenant: str,
        scopes: Sequence[str] = _SCOPES,
        *,
        description: str = "",
        expires_in_s: float | None = None,
    ) -> CreatedApiKey:
        """See `Admin.create_key`."""
        return await self._transport.send(_create_key(tenant, scopes, description, expires_in_s))

    async def rotate_key(self, key_id: str, *, overlap_s: float = 0.0) -> CreatedApiKey:
        """See `Admin.rotate_key`."""
        return await self._transport.send(_rotate_key(key_id, overlap_s))

    async def revoke_key(self, key_id: str) -> ApiKeyInfo:
        """See `Admin.revoke_key`."""
        return await self._transport.send(_revoke_key(key_id))

    async def audit(
        self,
        *,
        limit: int = 100,
        after: int | None = None,
        order: Order = "desc",
        tenant: str | None = None,
        action: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> AuditLog:
        """See `Admin.audit`."""
        return await self._transport.send(_audit(limit, after, order, tenant, action, since, until))

    async def reload(self) -> SettingsReload:
        """See `Admin.reload`."""
        return await self._transport.send(_reload())


def _tenants() -> Call[TenantList]:
    return Call("GET", _TENANTS, TenantList, is_idempotent=True)


def _tenant(name: str) -> Call[TenantInfo]:
    return Call("GET", _path(name), TenantInfo, is_idempotent=True)


def _create_tenant(name: str, limits: TenantLimits | Mapping[str, int | None] | None) -> Call[TenantInfo]:
    fields = {"name": name} if limits is None else {"name": name, "limits": limits}
    return Call("POST", _TENANTS, TenantInfo, body=request_body(TenantRequest, fields))


def _set_limits(name: str, limits: TenantLimits | Mapping[str, int | None]) -> Call[TenantInfo]:
    fields = limits.model_dump(exclude_unset=True) if isinstance(limits, TenantLimits) else limits
    body = request_body(TenantLimits, fields)
    return Call("PUT", f"{_path(name)}/limits", TenantInfo, body=body, is_idempotent=True)


def _delete_tenant(name: str) -> Call[TenantDeleted]:
    return Call("DELETE", _path(name), TenantDeleted)


def _keys(tenant: str) -> Call[ApiKeyList]:
    return Call("GET", f"{_path(tenant)}/keys", ApiKeyList, is_idempotent=True)


def _create_key(
    tenant: str, scopes: Sequence[str], description: str, expires_in_s: float | None
) -> Call[CreatedApiKey]:
    fields = {
        "scopes": list(scopes),
        "description": description,
        "expires_in_s": None if expires_in_s is None else float(expires_in_s),
    }
    return Call("POST", f"{_path(tenant)}/keys", CreatedApiKey, body=request_body(ApiKeyRequest, fields))


def _rotate_key(key_id: str, overlap_s: float) -> Call[CreatedApiKey]:
    body = request_body(ApiKeyRotation, {"overlap_s": float(overlap_s)})
    return Call("POST", f"/v1/admin/keys/{quote(key_id, safe='')}/rotate", CreatedApiKey, body=body)


def _revoke_key(key_id: str) -> Call[ApiKeyInfo]:
    return Call("DELETE", f"/v1/admin/keys/{quote(key_id, safe='')}", ApiKeyInfo)


def _audit(
    limit: int,
    after: int | None,
    order: Order,
    tenant: str | None,
    action: str | None,
    since: float | None,
    until: float | None,
) -> Call[AuditLog]:
    chosen = {"after": after, "tenant": tenant, "action": action, "since": since, "until": until}
    params = {name: str(value) for name, value in chosen.items() if value is not None}
    params |= {"limit": str(limit), "order": order}
    return Call("GET", "/v1/admin/audit", AuditLog, params=params, is_idempotent=True)


def _reload() -> Call[SettingsReload]:
    return Call("POST", "/v1/admin/reload", SettingsReload, is_idempotent=True)


def _path(tenant: str) -> str:
    return f"{_TENANTS}/{quote(tenant, safe='')}"
