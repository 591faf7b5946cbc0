"""What each tenant has used of its rates: buckets that fill all the time, one process's own."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from reft_server.errors import RateLimitError

from .directory import TenantDirectory

_MINUTE_S = 60.0


class Bucket:
    """Holds a minute's worth and fills at a steady rate.

    Semantics: `take(n)` succeeds when n are there (or, for an n larger than the bucket, when it is full) and leaves
    `level - n`, which may be negative, as after `charge`: that debt is waited for before the next `take`. Over any
    long time no more than `limit` a minute go out, and no request is too large to be served ever.

    Args:
        limit: per minute; 0 = never anything.
    """

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._level = float(limit)
        self._filled_at = now

    def set_limit(self, limit: int) -> None:
        """Change the limit; what was used stays used."""
        self._level += limit - self.limit
        self.limit = limit

    def wait_s(self, amount: int, now: float) -> float:
        """How long until `amount` could be taken, 0 = now."""
        if not self.limit:
            return math.inf
        missing = min(amount, self.limit) - self._fill(now)
        return max(0.0, missing * _MINUTE_S / self.limit)

    def charge(self, amount: int, now: float) -> None:
        """Take `amount`, there or not."""
        self._level = self._fill(now) - amount
        self._filled_at = now

    def remaining(self, now: float) -> int:
        """Whole units that are there."""
        return max(0, math.floor(self._fill(now)))

    def full_in_s(self, now: float) -> float:
        """How long until it is full again."""
        return (self.limit - self._fill(now)) * _MINUTE_S / self.limit if self.limit else _MINUTE_S

    def _fill(self, now: float) -> float:
        return min(self.limit, self._level + (now - self._filled_at) * self.limit / _MINUTE_S)


class Meter:
    """One tenant's use, against the limits that the directory has for it at that moment."""

    def __init__(self, directory: TenantDirectory, tenant: str) -> None:
        self._directory = directory
        self._tenant = tenant
        self._buckets: dict[str, Bucket] = {}
        self._num_running = 0

    def take_request(self) -> None:
        """Count a request.

        Raises:
            RateLimitError: the tenant has had its requests of this minute.
        """
        self._take("requests", 1)

    def take_prompt(self, num_tokens: int) -> None:
        """Count the tokens of a prompt; `charge_tokens` counts the answer's, which nobody knows yet.

        Raises:
            RateLimitError: the tenant has had its tokens of this minute.
        """
        self._take("tokens", num_tokens)

    def charge_tokens(self, num_tokens: int) -> None:
        """Count generated tokens; more than there are delay the next request."""
        bucket = self._bucket("tokens")
        if bucket is not None:
            bucket.charge(num_tokens, time.monotonic())

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count a generation while it runs.

        Raises:
            RateLimitError: as many as the tenant may have run already.
        """
        limit = self._directory.limits_of(self._tenant).max_concurrent_requests
        if limit is not None and self._num_running >= limit:
            raise RateLimitError(f"{self._num_running} of {limit} concurrent requests are running already")
        self._num_running += 1
        try:
            yield
        finally:
            self._num_running -= 1

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-*`, as OpenAI's API sends them, of the limits that the tenant has."""
        now = time.monotonic()
        found: dict[str, str] = {}
        for kind in ("requests", "tokens"):
            bucket = self._bucket(kind)
            if bucket is not None:
                found[f"x-ratelimit-limit-{kind}"] = str(bucket.limit)
                found[f"x-ratelimit-remaining-{kind}"] = str(bucket.remaining(now))
                found[f"x-ratelimit-reset-{kind}"] = _duration(bucket.full_in_s(now))
        return found

    def _take(self, kind: str, amount: int) -> None:
        bucket = self._bucket(kind)
        if bucket is None:
            return
        now = time.monotonic()
        wait_s = bucket.wait_s(amount, now)
        if wait_s:
            raise RateLimitError(
                f"The limit of {bucket.limit} {kind} per minute is reached; try again after the time in Retry-After",
                retry_after_s=min(wait_s, 24 * 60 * _MINUTE_S),
            )
        bucket.charge(amount, now)

    def _bucket(self, kind: str) -> Bucket | None:
        limits = self._directory.limits_of(self._tenant)
        limit = limits.requests_per_minute if kind == "requests" else limits.tokens_per_minute
        if limit is None:
            self._buckets.pop(kind, None)
            return None
        bucket = self._buckets.get(kind)
        if bucket is None:
            bucket = self._buckets[kind] = Bucket(limit, time.monotonic())
        elif bucket.limit != limit:
            bucket.set_limit(limit)
        return bucket


class Meters:
    """The meters of all tenants that have been seen; used from one event loop."""

    def __init__(self, directory: TenantDirectory) -> None:
        self._directory = directory
        self._meters: dict[str, Meter] = {}

    def of(self, tenant: str) -> Meter:
        """The tenant's meter."""
        meter = self._meters.get(tenant)
        if meter is None:
            meter = self._meters[tenant] = Meter(self._directory, tenant)
        return meter


def _duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `7s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
