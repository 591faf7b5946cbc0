"""The audit log: who changed what and when, written in the transaction of the change itself."""

from __future__ import annotations

import json
import time

from sqlalchemy import Connection, insert

from reft_server.request_context import current_request

from .model import wire_name
from .schema import AUDIT_LOG

COMMAND_LINE = "command line"
"""The actor where no request is being served: somebody at the machine."""


def record(connection: Connection, action: str, tenant: str, target: str, details: dict[str, object]) -> None:
    """Add an entry. Never content: no texts, no weights, no secrets.

    Args:
        action: what was done, `<thing>.<verb>`, such as `key.revoke`.
        tenant: whose thing it is.
        target: which thing: its name or id.
        details: what can't be read from the thing itself afterwards.
    """
    request = current_request()
    entry = {
        "at": time.time(),
        "actor": COMMAND_LINE if request is None else request.tenant,
        "key_id": None if request is None else request.key_id,
        "request_id": None if request is None else request.request_id,
        "action": action,
        "tenant": wire_name(tenant),
        "target": target,
        "details": json.dumps(details, sort_keys=True),
    }
    connection.execute(insert(AUDIT_LOG).values(entry))
