"""The settings one by one, as the command line, the documentation and the checks see them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize, ConfigDict
from pydantic.fields import FieldInfo

from .groups import RELOADABLE
from .settings import ENV_PREFIX, Settings


class SettingField(BaseModel):
    """One setting as the command line, the documentation and the checks of the environment see it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def variable(self) -> str:
        return ENV_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def key(self) -> str:
        """What the settings file calls it, dots for tables: `engine.max_queue_len`."""
        return ".".join(self.path)

    @property
    def is_reloadable(self) -> bool:
        """Whether a running server can take a new value."""
        return self.info.json_schema_extra == RELOADABLE

    def value_in(self, settings: Settings) -> Any:
        """The value that it has there."""
        return functools.reduce(getattr, self.path, settings)

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a setting that has a fixed list of them, else nothing."""
        return get_args(self.info.annotation) if get_origin(self.info.annotation) is Literal else ()

    @property
    def default_text(self) -> str:
        """The default as a user would write it; `unset` where there is none."""
        default = self.info.get_default(call_default_factory=True, validated_data={})
        if default is None:
            return "unset"
        if isinstance(default, ByteSize):
            return default.human_readable().replace(".0", "")
        if isinstance(default, Path):
            return str(default).replace(str(Path.home()), "~", 1)
        if isinstance(default, float):
            return f"{default:g}"
        return str(default).lower() if isinstance(default, bool) else str(default)


def setting_fields() -> tuple[SettingField, ...]:
    """Every setting, those of nested groups too, in the order of their declaration."""
    fields: list[SettingField] = []
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            fields += [SettingField(path=(name, key), info=sub) for key, sub in info.annotation.model_fields.items()]
        else:
            fields.append(SettingField(path=(name,), info=info))
    return tuple(fields)
