"""API keys: `reft-<id>-<secret>`. The id finds the key, the secret proves it, and only a keyed hash of it is stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

_KEY = re.compile(r"reft-(?P<key_id>[0-9a-f]{16})-(?P<secret>[A-Za-z0-9_-]{43})")
_SECRET_BYTES = 32
_SALT_BYTES = 16


@dataclass(frozen=True)
class NewKey:
    """A key at its birth: the only time that `text` is known."""

    key_id: str
    text: str = field(repr=False)
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)


def new_key() -> NewKey:
    """A key with 256 random bits."""
    key_id, secret = secrets.token_hex(8), secrets.token_urlsafe(_SECRET_BYTES)
    salt = secrets.token_bytes(_SALT_BYTES)
    return NewKey(key_id, f"reft-{key_id}-{secret}", salt, digest_of(secret, salt))


def parse_key(text: str) -> tuple[str, str] | None:
    """The id and the secret of a key; None if it can't be one."""
    found = _KEY.fullmatch(text)
    return None if found is None else (found["key_id"], found["secret"])


def digest_of(secret: str, salt: bytes) -> bytes:
    """HMAC-SHA-256. A slow hash would add nothing: nobody can try 2**256 secrets."""
    return hmac.digest(salt, secret.encode(), hashlib.sha256)


def is_match(secret: str, salt: bytes, digest: bytes) -> bool:
    """Whether the secret is the one that was hashed, in a time that does not depend on it."""
    return hmac.compare_digest(digest_of(secret, salt), digest)
