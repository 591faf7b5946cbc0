"""The audit log: who changed what and when."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import ResponseModel

__all__ = ["AuditEntry", "AuditLog"]


class AuditEntry(ResponseModel):
    """One change.

    Args:
        id: grows with every entry; no number is used twice.
        at: Unix seconds.
        actor: the tenant whose key it was, `command line`, or `server process` (at its start, at a signal, after a
            time).
        key_id: of that key; None = without one.
        request_id: of the HTTP request.
        action: what was done, `<thing>.<verb>`, such as `key.revoke`.
        tenant: whose thing it is; `shared` is the operator's.
        target: which thing: its name or id.
    """

    object: Literal["audit_log.entry"] = "audit_log.entry"
    id: int
    at: float
    actor: str
    key_id: str | None = None
    request_id: str | None = None
    action: str
    tenant: str
    target: str
    details: dict[str, Any] = Field(default_factory=dict)


class AuditLog(ResponseModel):
    """A page of the log. `last_id` is what `after` takes for the next one; None = the page is empty."""

    object: Literal["list"] = "list"
    data: tuple[AuditEntry, ...] = ()
    first_id: int | None = None
    last_id: int | None = None
    has_more: bool = False
