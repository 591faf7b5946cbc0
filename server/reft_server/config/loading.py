"""Settings from the command line, the environment and the settings file."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from reft_server.errors import ConfigurationError

from .fields import setting_fields
from .settings import ENV_PREFIX, Settings

CLIENT_VARIABLES = frozenset({"REFT_URL", "REFT_API_KEY"})
"""Read by `reft_client`, and so allowed in a shell that starts the server too."""


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse a misspelt variable: it would be ignored in silence otherwise.

    Raises:
        ConfigurationError: a `REFT_*` variable that no setting has; a valid name that is like it is in the message.
    """
    known = {field.variable for field in setting_fields()} | CLIENT_VARIABLES
    for name in sorted(environ):
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            advice = _advice(name.upper(), known, prefix=ENV_PREFIX)
            raise ConfigurationError(f"Unknown setting {name}: {advice}", param=name)


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Build the tree from `overrides` (nested as the tree is), then the environment, the settings file, the defaults.

    Raises:
        ConfigurationError: an unknown variable or key, a file that can't be read, a value that is malformed or out of
            bounds, or two that contradict each other.
    """
    check_environment(os.environ)
    given = _merged(EnvSettingsSource(Settings)(), overrides or {})
    file = {} if given.get("config") is None else read_settings_file(Path(given["config"]))
    try:
        settings = Settings(**_merged(file, given))
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        field = next(field for field in setting_fields() if field.path == path)
        is_given = field.path[0] in given and (len(path) == 1 or path[1] in given[path[0]])
        where = f"{field.flag} (or {field.variable})" if is_given else f"{field.key} in {given.get('config')}"
        raise ConfigurationError(f"{where} is {first['input']!r}: {first['msg']}.", param=field.variable) from error
    check_together(settings)
    return settings


def check_together(settings: Settings) -> None:
    """Check what no setting can say by itself.

    Raises:
        ConfigurationError: two of them contradict each other.
    """
    if settings.blob_url is not None and settings.database_url is None:
        raise ConfigurationError(
            "--blob-url needs --database-url (REFT_DATABASE_URL): a shared bucket's versions are in a database.",
            param="blob_url",
        )


def read_settings_file(path: Path) -> dict[str, Any]:
    """The values in a TOML file, nested as the settings are: `port = 8000`, and tables `[engine]`, `[tenant]` ….

    Raises:
        ConfigurationError: it can't be read, is not TOML, or has a key that no setting has.
    """
    try:
        values = tomllib.loads(path.expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"Can't read the settings file {path}: {error.strerror}.", param="config") from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError
        raise ConfigurationError(f"The settings file {path} is not TOML: {error}.", param="config") from error
    known = {field.key for field in setting_fields()} - {"config"}
    for key in _keys(values):
        if key not in known:
            raise ConfigurationError(f"Unknown setting {key} in {path}: {_advice(key, known)}", param="config")
    return values


def _keys(values: Mapping[str, Any]) -> list[str]:
    tables = {name: table for name, table in values.items() if isinstance(table, dict)}
    nested = [f"{name}.{key}" for name, table in tables.items() for key in table]
    return [name for name in values if name not in tables] + nested


def _merged(values: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """Both, groups merged key by key; `stronger` wins."""
    merged = {**values, **stronger}
    for name in values.keys() & stronger.keys():
        if isinstance(values[name], Mapping) and isinstance(stronger[name], Mapping):
            merged[name] = {**values[name], **stronger[name]}
    return merged


def _advice(name: str, known: Iterable[str], prefix: str = "") -> str:
    rests = sorted(other.removeprefix(prefix) for other in known)  # what all have in common makes none of them likely
    close = difflib.get_close_matches(name.removeprefix(prefix), rests, n=1)
    return f"did you mean {prefix}{close[0]}?" if close else "`reft-serve --help` lists them all."
