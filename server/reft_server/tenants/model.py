"""Tenants, keys and callers as the rest of the server sees them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

Scope = Literal["infer", "upload", "admin", "metrics"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

SHARED = ""
"""The operator's tenant. What its namespace holds, everybody may read and nobody else may change."""
SHARED_NAME = "shared"
"""What the API and the command line call it; no other tenant can have this name."""


@dataclass(frozen=True)
class TenantLimits:
    """What one tenant may use; None = the server's default, which may be no limit.

    Args:
        requests_per_minute: of any route that needs a key.
        tokens_per_minute: prompt and generated tokens.
        max_concurrent_requests: generations that run or wait at once.
        max_stored_bytes: living versions of intervention sets, together.
        max_sets: names with a living version.
        max_upload_bytes: one intervention file.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent_requests: int | None = None
    max_stored_bytes: int | None = None
    max_sets: int | None = None
    max_upload_bytes: int | None = None

    def or_else(self, defaults: TenantLimits) -> TenantLimits:
        """These limits, and those of `defaults` where there is none."""
        if self == _NO_LIMITS:
            return defaults
        own = asdict(self)
        return TenantLimits(**{name: getattr(defaults, name) if own[name] is None else own[name] for name in own})


_NO_LIMITS = TenantLimits()


@dataclass(frozen=True)
class Tenant:
    """A namespace and whoever holds a key for it. `created_at` is Unix seconds."""

    name: str
    created_at: float = 0.0
    limits: TenantLimits = field(default_factory=TenantLimits)


@dataclass(frozen=True)
class ApiKey:
    """What is known about a key; never the key itself. Times are Unix seconds.

    Args:
        key_id: the part of the key that is no secret.
        salt: of the hash, random for each key.
        digest: HMAC-SHA-256 of the secret part.
    """

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    description: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    def is_alive(self, now: float) -> bool:
        """Neither revoked nor expired at `now`."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True)
class Caller:
    """Who sends a request: resolved once, and passed to whatever acts on its behalf.

    `key_id` is None where no key is needed.
    """

    tenant: Tenant
    scopes: frozenset[Scope]
    key_id: str | None

    @property
    def is_open(self) -> bool:
        """The server has no keys: everybody is the operator, but for the administration of keys."""
        return self.key_id is None

    def share(self, user: str | None) -> str:
        """Whose share of the engine a request uses: the tenant's; without keys, that of the `user` it names."""
        return (user or "") if self.is_open else self.tenant.name

    def cache_salt(self, salt: str | None, *, is_shared: bool) -> str:
        """What keeps a request's prefixes apart: its salt, and its tenant unless tenants share them."""
        return salt or "" if self.is_open or is_shared else f"{self.tenant.name}/{salt or ''}"


OPEN_CALLER = Caller(Tenant(SHARED), frozenset({"infer", "upload", "metrics"}), None)


def wire_name(tenant: str) -> str:
    """What the API calls a tenant."""
    return tenant or SHARED_NAME


def tenant_of_wire_name(name: str) -> str:
    """The tenant that the API calls so; the inverse of `wire_name`."""
    return SHARED if name == SHARED_NAME else name


def key_state(key: ApiKey, now: float) -> Literal["active", "expired", "revoked"]:
    """Whether a key opens anything at `now`, and if not, why."""
    if key.revoked_at is not None:
        return "revoked"
    return "active" if key.is_alive(now) else "expired"


def label_of(owner: str, name: str) -> str:
    """A set's name for logs and metrics, where there is no caller that it could be relative to."""
    return f"{owner}/{name}" if owner else name
