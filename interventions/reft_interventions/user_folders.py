"""Where a user's files lie by default, for the server and the trainer alike."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The default base model's name; its converted folder is `<cache>/models/<name>-<conversion>`."""


def user_folder(variable: str, fallback: str) -> Path:
    """`$variable/reft-serve` (an XDG variable), or `~/fallback/reft-serve` where it is unset or relative."""
    configured = Path(os.environ.get(variable, ""))
    return (configured if configured.is_absolute() else Path.home() / fallback) / "reft-serve"


def default_cache_dir() -> Path:
    """The folder that keeps fetched models, unless a setting moves it."""
    return user_folder("XDG_CACHE_HOME", ".cache")
