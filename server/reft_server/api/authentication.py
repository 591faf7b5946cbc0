"""Who sends a request, and whether that is enough for its route."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope as HttpScope

from reft_server.errors import AuthenticationError, PermissionDeniedError
from reft_server.tenants import OPEN_CALLER, Caller, Scope, TenantDirectory

PUBLIC_PATHS = frozenset({"/health", "/ready", "/version", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json"})
"""What answers without a key: nothing there is a tenant's. All other paths need one, those that don't exist too."""


class Authenticator:
    """Resolves a request's caller from its headers.

    Args:
        may_be_open: with no key in the directory everybody is the operator; otherwise nobody gets in.
    """

    def __init__(self, directory: TenantDirectory, *, may_be_open: bool) -> None:
        self._directory = directory
        self._may_be_open = may_be_open

    def caller(self, headers: Headers) -> Caller:
        """The caller that the bearer token names.

        Raises:
            AuthenticationError: no key, or one that is nobody's, revoked or expired; which of these it does not say.
        """
        snapshot = self._directory.snapshot
        if self._may_be_open and not snapshot.keys:
            return OPEN_CALLER
        values = headers.getlist("authorization")
        kind, _, key = values[0].partition(" ") if len(values) == 1 else ("", "", "")
        caller = snapshot.caller(key.strip()) if kind.lower() == "bearer" else None
        if caller is None:
            raise AuthenticationError("Send a valid API key, in the header Authorization: Bearer <key>")
        return caller


def set_caller(scope: HttpScope, caller: Caller) -> None:
    """Note the caller of a request for its route."""
    scope.setdefault("state", {})["caller"] = caller


def requires(*scopes: Scope) -> Callable[[Request], Caller]:
    """A dependency: the request's caller, who has one of `scopes`."""

    def check(request: Request) -> Caller:
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
