"""Where the server is and how long to wait for it: what both clients need before the first request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import httpx

from .errors import InvalidArgumentError

__all__ = ["DEFAULT_URL", "LIMITS", "Connection"]

DEFAULT_URL = "http://127.0.0.1:8000"
# Idle connections go before uvicorn drops its end after 5 s: a request sent into a closing one would be lost.
LIMITS = httpx.Limits(max_connections=1000, max_keepalive_connections=100, keepalive_expiry=4.0)
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def _user_agent() -> str:
    try:
        return f"reft-client/{version('reft-serve')}"
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "reft-client"


@dataclass(frozen=True)
class Connection:
    """One server.

    Args:
        base_url: without the `/v1`.
        trust_env: whether proxies of the environment apply; never to this machine's own servers.
    """

    base_url: str
    headers: dict[str, str]
    timeout: httpx.Timeout
    trust_env: bool

    @classmethod
    def resolve(cls, base_url: str | None, api_key: str | None, timeout_s: float) -> Connection:
        """Fill in `REFT_URL` and `REFT_API_KEY` where an argument is None.

        Args:
            base_url: with or without a `/v1` at its end, as OpenAI's SDK wants it.
            timeout_s: the longest silence accepted while the server works.

        Raises:
            InvalidArgumentError: not an http(s) URL, a timeout that is not positive, or a key with odd characters.
        """
        url = (base_url or os.environ.get("REFT_URL") or DEFAULT_URL).rstrip("/").removesuffix("/v1")
        key = api_key or os.environ.get("REFT_API_KEY")
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InvalidArgumentError(f"{url!r} is not a URL: {error}") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise InvalidArgumentError(f"{url!r} is not a server's URL; write it like {DEFAULT_URL}")
        if not timeout_s > 0:
            raise InvalidArgumentError(f"timeout_s must be positive, got {timeout_s}")
        headers = {"user-agent": _user_agent()}
        if key:
            if not key.isascii() or not key.isprintable():
                raise InvalidArgumentError("the API key has characters that no header may hold")
            headers["authorization"] = f"Bearer {key}"
        timeout = httpx.Timeout(connect=min(5.0, timeout_s), read=timeout_s, write=60.0, pool=60.0)
        return cls(url, headers, timeout, trust_env=parsed.host not in _LOOPBACK)
