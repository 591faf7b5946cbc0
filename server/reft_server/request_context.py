"""The request that is being served, as logs, metrics and traces name it: its id, its tenant, and never its content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .tracing import RequestTrace

DEFAULT_TENANT = "default"
"""Whom requests belong to where nothing tells tenants apart."""

_CURRENT: ContextVar[RequestContext | None] = ContextVar("reft_request", default=None)


@dataclass
class RequestContext:
    """One HTTP request.

    Args:
        request_id: the `x-request-id` of the response.
        tenant: the seam between authentication and everything that labels by tenant: who authenticates writes it here.
        key_id: of the API key that it came with; None = without one.
        trace: its span, where traces are on.
        fields: what the line at the request's end says besides; counts, codes and hashes only.
    """

    request_id: str
    tenant: str = DEFAULT_TENANT
    key_id: str | None = None
    fields: dict[str, str | int | float] = field(default_factory=dict)
    trace: RequestTrace | None = None


def current_request() -> RequestContext | None:
    """The request that this task, or the one that started it, serves; None outside of requests."""
    return _CURRENT.get()


def current_tenant() -> str:
    """The tenant of the request that is being served."""
    request = _CURRENT.get()
    return DEFAULT_TENANT if request is None else request.tenant


def note(**fields: str | int | float) -> None:
    """Add to the line at the request's end. Never content: no text, no token ids, no names that a client chose."""
    request = _CURRENT.get()
    if request is not None:
        request.fields.update(fields)


@contextmanager
def serving(request_id: str) -> Iterator[RequestContext]:
    """Within it, this task serves the request."""
    request = RequestContext(request_id)
    token = _CURRENT.set(request)
    try:
        yield request
    finally:
        _CURRENT.reset(token)
