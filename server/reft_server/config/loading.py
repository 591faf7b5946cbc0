"""Settings from the command line, the environment and the settings file."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from reft_server.errors import ConfigurationError

from .fields import SettingField, setting_fields
from .settings import ENV_PREFIX, Settings

CLIENT_VARIABLES = frozenset({"REFT_URL", "REFT_API_KEY"})
"""Read by `reft_client`, and so allowed in a shell that starts the server too."""


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse a misspelt variable: it would be ignored in silence otherwise.

    Raises:
        ConfigurationError: a `REFT_*` variable that no setting has; the nearest valid name is in the message.
    """
    known = sorted({field.variable for field in setting_fields()} | CLIENT_VARIABLES)
    for name in sorted(environ):
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise ConfigurationError(f"Unknown setting {name}: did you mean {nearest}?", param=name)


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Build the tree from `overrides` (nested as the tree is), then the environment, then the defaults.

    Raises:
        ConfigurationError: an unknown variable, or a value that is malformed or out of bounds.
    """
    check_environment(os.environ)
    try:
        return Settings(**dict(overrides or {}))
    except ValidationError as error:
        first = error.errors()[0]
        field = SettingField(path=tuple(str(part) for part in first["loc"]), info=FieldInfo())
        raise ConfigurationError(
            f"{field.flag} (or {field.variable}) is {first['input']!r}: {first['msg']}.", param=field.variable
        ) from error
