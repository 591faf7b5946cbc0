"""The rules for names, versions, aliases and references: `name`, `name@3`, `name@sha256:0123456789ab`, `name@prod`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import InvalidInterventionNameError

MAX_NAME_LENGTH = 64

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?")
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_CONTENT_HASH = re.compile(r"sha256:[0-9a-f]{12,64}")
# Windows opens a device instead of a file for these, with any extension; a store may be copied there.
_DEVICE_NAMES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})

_NAME_RULE = (
    f"a name has 1 to {MAX_NAME_LENGTH} characters out of a-z 0-9 . _ -, begins and ends with a letter or digit, "
    "has no '..' and is not a device name such as 'con'"
)


@dataclass(frozen=True)
class Reference:
    """A parsed reference. `version` is None (the newest), a number, or `sha256:` and at least 12 hex digits."""

    name: str
    version: int | str | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def check_name(name: str) -> str:
    """Return `name` if it may name an intervention.

    Upper case is refused, not folded: on a case-insensitive file system `Pirate` and `pirate` would be one folder.

    Raises:
        InvalidInterventionNameError: it breaks the rules; the message states them.
    """
    is_legal = (
        isinstance(name, str)
        and len(name) <= MAX_NAME_LENGTH
        and _NAME.fullmatch(name) is not None
        and ".." not in name
        and name.partition(".")[0] not in _DEVICE_NAMES
    )
    if not is_legal:
        raise InvalidInterventionNameError(f"{_quoted(name)} can't name an intervention: {_NAME_RULE}", param="name")
    return name


def check_version(version: int | str | None) -> int | str | None:
    """Return `version` with a number given as text turned into an int.

    Raises:
        InvalidInterventionNameError: neither a positive number nor `sha256:` and at least 12 lower-case hex digits.
    """
    if version is None:
        return None
    if isinstance(version, int) and not isinstance(version, bool):
        version = str(version)
    if isinstance(version, str):
        if _NUMBER.fullmatch(version):
            return int(version)
        if _CONTENT_HASH.fullmatch(version):
            return version
    raise InvalidInterventionNameError(
        f"{_quoted(version)} is not a version: give a positive number, or 'sha256:' and at least the first "
        "12 hex digits (lower case) of the content hash",
        param="version",
    )


def check_alias(alias: str) -> str:
    """Return `alias` if it may name a version: the rule of names, and no number.

    Raises:
        InvalidInterventionNameError: it breaks the rule.
    """
    if not is_alias(alias):
        raise InvalidInterventionNameError(
            f"{_quoted(alias)} can't be an alias: it must not be a number, and {_NAME_RULE}", param="alias"
        )
    return alias


def is_alias(version: int | str | None) -> bool:
    """Whether a version, as a reference gives it, can only be an alias."""
    if not isinstance(version, str) or version.isdecimal():
        return False
    try:
        check_name(version)
    except InvalidInterventionNameError:
        return False
    return True


def parse_reference(text: str) -> Reference:
    """Parse `name`, `name@3` or `name@sha256:…`.

    Raises:
        InvalidInterventionNameError: the name or the version breaks the rules.
    """
    if not isinstance(text, str):
        raise InvalidInterventionNameError(f"{_quoted(text)} is not a reference to an intervention", param="name")
    name, at, version = text.partition("@")
    return Reference(check_name(name), check_version(version) if at else None)


def _quoted(value: object) -> str:
    # ascii(): a hostile name must not smuggle control characters into a log line or a terminal.
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
