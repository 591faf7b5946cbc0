"""Who may do what: tenants, their API keys, scopes, limits and grants."""

from __future__ import annotations

from .directory import TenantDirectory
from .model import OPEN_CALLER, SCOPES, SHARED, ApiKey, Caller, Scope, Tenant, TenantLimits

__all__ = [
    "OPEN_CALLER",
    "SCOPES",
    "SHARED",
    "ApiKey",
    "Caller",
    "Scope",
    "Tenant",
    "TenantDirectory",
    "TenantLimits",
]
