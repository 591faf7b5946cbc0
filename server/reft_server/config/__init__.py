"""Everything that can be set about a server: one frozen tree, from flags, variables and a file."""

from __future__ import annotations

from .fields import SettingField, setting_fields
from .groups import EngineGroup, FineTuningGroup, TenantGroup
from .loading import check_environment, check_together, load_settings
from .settings import Settings

__all__ = [
    "EngineGroup",
    "FineTuningGroup",
    "SettingField",
    "Settings",
    "TenantGroup",
    "check_environment",
    "check_together",
    "load_settings",
    "setting_fields",
]
