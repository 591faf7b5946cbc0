"""Who sends a request, and whether that is enough for its route."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope as HttpScope

from reft_server.errors import AuthenticationError, PermissionDeniedError
from reft_server.tenants import OPEN_CALLER, Caller, Scope, TenantDirectory

PUBLIC_PATHS = frozenset({"/health", "/ready", "/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""What answers without a key: nothing there is a tenant's. All other paths need one, those that don't exist too."""


OpenTo = Literal["nobody", "local", "everybody"]
"""Who is the operator while the directory has no key. `local`: programs of this machine, and not a page in its browser,
which could send requests here from any site (cross-site requests, DNS rebinding)."""


class Authenticator:
    """Resolves a request's caller from its headers."""

    def __init__(self, directory: TenantDirectory, *, open_to: OpenTo) -> None:
        self._directory = directory
        self._open_to = open_to

    def caller(self, headers: Headers) -> Caller:
        """The caller that the bearer token names.

        Raises:
            PermissionDeniedError: no keys, and a browser sends this for another site.
            AuthenticationError: no key, or one that is nobody's, revoked or expired; which of these it does not say.
        """
        snapshot = self._directory.snapshot
        if self._open_to != "nobody" and not snapshot.keys:
            if self._open_to == "local":
                _check_local(headers)
            return OPEN_CALLER
        values = headers.getlist("authorization")
        kind, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        caller = snapshot.caller(key.strip()) if kind.lower() == "bearer" else None
        if caller is None:
            raise AuthenticationError("Send a valid API key, in the header Authorization: Bearer <key>")
        return caller


def _check_local(headers: Headers) -> None:
    """Refuse what a browser sends for another site: with that site's name as `Host` (rebinding) or as `Origin`."""
    host, origin = headers.get("host"), headers.get("origin")
    if (host is None or _is_local(f"//{host}")) and (origin is None or _is_local(origin)):
        return
    raise PermissionDeniedError(
        "Without API keys this server answers requests to localhost only, and none of other sites' web pages: "
        "use http://127.0.0.1, make a key with `reft-serve keys create`, or start it with --insecure"
    )


def _is_local(url: str) -> bool:
    try:
        name = urlsplit(url).hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def set_caller(scope: HttpScope, caller: Caller) -> None:
    """Note the caller of a request for its route."""
    scope.setdefault("state", {})["caller"] = caller


def requires(*scopes: Scope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the request's caller, who has one of `scopes`."""

    async def check(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if caller.scopes.isdisjoint(scopes):
            if caller.is_open:
                raise PermissionDeniedError("This server has no keys yet: make the first with `reft-serve keys create`")
            raise PermissionDeniedError(f"This API key lacks the scope {' or '.join(scopes)}")
        return caller

    return check


Infer = Annotated[Caller, Depends(requires("infer"))]
Reader = Annotated[Caller, Depends(requires("infer", "upload"))]
"""Whoever may use a set or replace it may know what there is."""
Upload = Annotated[Caller, Depends(requires("upload"))]
NEEDS_INFER = Depends(requires("infer"))
NEEDS_ADMIN = Depends(requires("admin"))
NEEDS_METRICS = Depends(requires("metrics"))
