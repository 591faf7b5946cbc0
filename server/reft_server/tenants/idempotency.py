"""`Idempotency-Key`: a request that is sent twice is done once, and its answer given again."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from reft_server.errors import IdempotencyKeyInUseError, IdempotencyKeyReusedError

from .directory import TenantDirectory
from .set_schema import IDEMPOTENCY_KEYS

KEPT_S = 24 * 3600.0
"""How long an answer is given again."""
_ABANDONED_S = 600.0
"""A request that has not ended by then died with its server; another may do it."""


@dataclass(frozen=True)
class KeptAnswer:
    """What the first request with a key was answered; `body` is JSON."""

    status: int
    body: str


class IdempotencyKeys:
    """The keys of all tenants, in the database that all servers share. All methods wait for it."""

    def __init__(self, directory: TenantDirectory) -> None:
        self._directory = directory

    def begin(self, tenant: str, key: str, fingerprint: str) -> KeptAnswer | None:
        """Take a key for a request; or the answer that the same request was given before.

        Args:
            fingerprint: a hash of everything that makes it the same request.

        Raises:
            IdempotencyKeyReusedError: another request had this key.
            IdempotencyKeyInUseError: the same request is being done now.
        """
        now, is_ours = time.time(), _is(tenant, key)
        try:
            with self._directory.writing() as connection:
                is_old = IDEMPOTENCY_KEYS.c.created_at < now - KEPT_S
                is_dead = IDEMPOTENCY_KEYS.c.status.is_(None) & (IDEMPOTENCY_KEYS.c.created_at < now - _ABANDONED_S)
                connection.execute(delete(IDEMPOTENCY_KEYS).where(is_old | (is_ours & is_dead)))
                found = connection.execute(select(IDEMPOTENCY_KEYS).where(is_ours)).first()
                if found is None:
                    values = {"tenant": tenant, "key": key, "fingerprint": fingerprint, "created_at": now}
                    connection.execute(insert(IDEMPOTENCY_KEYS).values(values))
                    return None
        except IntegrityError as error:
            raise _in_use() from error
        if found.fingerprint != fingerprint:
            raise IdempotencyKeyReusedError(
                "Another request had this Idempotency-Key: make one for each operation", param="idempotency-key"
            )
        if found.status is None:
            raise _in_use()
        return KeptAnswer(found.status, found.body)

    def finish(self, tenant: str, key: str, answer: KeptAnswer) -> None:
        """Keep the answer of a request that was done."""
        with self._directory.writing() as connection:
            values = {"status": answer.status, "body": answer.body}
            connection.execute(update(IDEMPOTENCY_KEYS).where(_is(tenant, key)).values(values))

    def give_up(self, tenant: str, key: str) -> None:
        """Free the key of a request that failed: it may be sent again."""
        with self._directory.writing() as connection:
            connection.execute(delete(IDEMPOTENCY_KEYS).where(_is(tenant, key)))


def _is(tenant: str, key: str) -> ColumnElement[bool]:
    return (IDEMPOTENCY_KEYS.c.tenant == tenant) & (IDEMPOTENCY_KEYS.c.key == key)


def _in_use() -> IdempotencyKeyInUseError:
    return IdempotencyKeyInUseError("The request with this Idempotency-Key has not ended yet", param="idempotency-key")
