"""Checksums of a request's body, as the client announces them (RFC 9530)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re

from reft_server.errors import ContentDigestError, InvalidRequestError

_MEMBER = re.compile(r"\s*([a-z0-9-]+)=:([A-Za-z0-9+/=]*):\s*")
_ALGORITHMS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


class BodyDigest:
    """Counts along while a body arrives.

    Args:
        header: `Content-Digest`, such as `sha-256=:<base64>:`; None = nothing to compare with.

    Raises:
        InvalidRequestError: the header can't be read, or names no algorithm that is known here.
    """

    def __init__(self, header: str | None) -> None:
        self._expected = {} if header is None else _parse(header)
        self._hashers = {name: _ALGORITHMS[name]() for name in self._expected}

    def update(self, data: bytes) -> None:
        """The next bytes of the body."""
        for hasher in self._hashers.values():
            hasher.update(data)

    def check(self) -> None:
        """Raises `ContentDigestError` where the whole body is not what the header says."""
        for name, hasher in self._hashers.items():
            if not hmac.compare_digest(hasher.digest(), self._expected[name]):
                raise ContentDigestError(
                    f"The body's {name} is not that of Content-Digest: it was changed on its way",
                    param="content-digest",
                )


def _parse(header: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for part in header.split(","):
        member = _MEMBER.fullmatch(part)
        if member is None:
            raise _bad_header()
        if member[1] in _ALGORITHMS:
            try:
                found[member[1]] = base64.b64decode(member[2], validate=True)
            except binascii.Error as error:
                raise _bad_header() from error
    if not found:
        raise _bad_header()
    return found


def _bad_header() -> InvalidRequestError:
    return InvalidRequestError(
        "Content-Digest must be sha-256=:<base64>: or sha-512=:<base64>:", param="content-digest"
    )
