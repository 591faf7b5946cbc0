"""Administration: tenants, their limits and their API keys. Who may use a set of another tenant."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from .base import FiniteFloat, Int, RequestModel, ResponseModel, Text

__all__ = [
    "ApiKeyInfo",
    "ApiKeyList",
    "ApiKeyRequest",
    "ApiKeyRotation",
    "CreatedApiKey",
    "SettingsReload",
    "TenantDeleted",
    "TenantInfo",
    "TenantLimits",
    "TenantList",
    "TenantRequest",
]

KeyScope = Literal["infer", "upload", "admin", "metrics"]
_Limit = Annotated[Int, Field(ge=0, lt=1 << 53)]
_MAX_KEY_LIFE_S = 100 * 366 * 86_400


class _Strict(RequestModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TenantLimits(_Strict):
    """What a tenant may use; None = the server's default.

    Args:
        requests_per_minute: of any route that needs a key.
        tokens_per_minute: prompt and generated tokens.
        max_concurrent_requests: generations that run or wait at once.
        max_stored_bytes: living versions of intervention sets, together.
        max_sets: names with a living version.
        max_upload_bytes: one intervention file.
    """

    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    max_concurrent_requests: _Limit | None = None
    max_stored_bytes: _Limit | None = None
    max_sets: _Limit | None = None
    max_upload_bytes: _Limit | None = None


class TenantRequest(_Strict):
    """A tenant to add."""

    name: Annotated[Text, Field(min_length=1, max_length=64)]
    limits: TenantLimits = Field(default_factory=TenantLimits)


class TenantInfo(ResponseModel):
    """One tenant; `created` is Unix time in seconds."""

    object: Literal["tenant"] = "tenant"
    name: str
    created: int
    limits: TenantLimits = Field(default_factory=TenantLimits)


class TenantDeleted(ResponseModel):
    """A tenant that is gone, with all that was its own."""

    object: Literal["tenant.deleted"] = "tenant.deleted"
    name: str
    deleted: bool = True


class TenantList(ResponseModel):
    """Every tenant, by name; the operator's own is called `shared`."""

    object: Literal["list"] = "list"
    data: tuple[TenantInfo, ...] = ()


class ApiKeyRequest(_Strict):
    """A key to make.

    Args:
        expires_in_s: None = it lives until it is revoked.
    """

    scopes: Annotated[list[KeyScope], Field(min_length=1, max_length=16)]
    description: Annotated[Text, Field(max_length=256)] = ""
    expires_in_s: Annotated[FiniteFloat, Field(gt=0, le=_MAX_KEY_LIFE_S)] | None = None


class ApiKeyRotation(_Strict):
    """How long the old key goes on beside the new one, seconds."""

    overlap_s: Annotated[FiniteFloat, Field(ge=0, le=_MAX_KEY_LIFE_S)] = 0.0


class ApiKeyInfo(ResponseModel):
    """What is known about a key; times are Unix seconds.

    Args:
        id: the middle part of the key, `reft-<id>-…`.
        state: `revoked` and `expired` keys open nothing.
    """

    object: Literal["api_key"] = "api_key"
    id: str
    tenant: str
    scopes: tuple[str, ...]
    description: str = ""
    created: int
    expires_at: int | None = None
    revoked_at: int | None = None
    state: Literal["active", "expired", "revoked"] = "active"


class CreatedApiKey(ApiKeyInfo):
    """A new key. `key` is shown this once: the server keeps a hash of it."""

    key: str = Field(repr=False)


class SettingsReload(ResponseModel):
    """What a server found when it read its settings again, by their keys in the settings file.

    Args:
        changed: took effect.
        needs_restart: differ from what the server runs with, and can't change while it does.
    """

    object: Literal["settings.reload"] = "settings.reload"
    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class ApiKeyList(ResponseModel):
    """A tenant's keys, oldest first, dead ones too."""

    object: Literal["list"] = "list"
    data: tuple[ApiKeyInfo, ...] = ()
