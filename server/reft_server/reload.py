"""Settings that change while the server runs: read again, checked as a whole, then handed to whoever uses them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from .config import SettingField, Settings, setting_fields
from .tenants import SHARED, TenantDirectory

logger = logging.getLogger(__name__)

ReadSettings = Callable[[], Settings]
UseSettings = Callable[[Settings], None]


@dataclass(frozen=True)
class Reloaded:
    """What a reload found, by the settings' keys in the file: `engine.max_queue_len`.

    Args:
        changed: took effect.
        needs_restart: differ from what the server runs with, and can't change while it does.
    """

    changed: tuple[str, ...] = ()
    needs_restart: tuple[str, ...] = ()


class SettingsReload:
    """Brings new values of reloadable settings to a running server; for one event loop.

    Args:
        settings: those that the server was started with.
        read: reads them again, from where they came from.
        directory: whose audit log gets an entry for each reload that changes something.
    """

    def __init__(self, settings: Settings, read: ReadSettings, directory: TenantDirectory | None = None) -> None:
        self._running = settings
        self._read = read
        self._directory = directory
        self._users: list[UseSettings] = []
        self._lock = asyncio.Lock()

    def on_change(self, use: UseSettings) -> None:
        """Call `use` with the new settings after each change. It must not fail, and not wait."""
        self._users.append(use)

    async def __call__(self) -> Reloaded:
        """Read the settings, and use those that can change. With an error nothing changes.

        Raises:
            ConfigurationError: the file can't be read, or a value is wrong.
            StoreError: the audit log can't be written.
        """
        async with self._lock:
            new = await asyncio.to_thread(self._read)
            found = _compare(self._running, new)
            if found.changed:
                await asyncio.to_thread(self._audit, found)
                self._running = _replaced(self._running, new)
                for use in self._users:
                    use(self._running)
            logger.info(
                "settings_reloaded changed=%s needs_restart=%s",
                ",".join(found.changed) or "-",
                ",".join(found.needs_restart) or "-",
            )
            return found

    def _audit(self, found: Reloaded) -> None:
        if self._directory is not None:
            with self._directory.recording("settings.reload", SHARED, "settings", changed=found.changed):
                pass


def _compare(running: Settings, new: Settings) -> Reloaded:
    differing = [field for field in setting_fields() if field.value_in(running) != field.value_in(new)]
    return Reloaded(
        changed=tuple(field.key for field in differing if field.is_reloadable),
        needs_restart=tuple(field.key for field in differing if not field.is_reloadable),
    )


def _replaced(running: Settings, new: Settings) -> Settings:
    """`running`, with the reloadable values of `new`."""
    fields = [field for field in setting_fields() if field.is_reloadable]
    updated = {field.path[0]: _updated(field, fields, running, new) for field in fields}
    return running.model_copy(update=updated)


def _updated(field: SettingField, fields: list[SettingField], running: Settings, new: Settings) -> object:
    """The value of a setting, or the whole group that it belongs to."""
    if len(field.path) == 1:
        return field.value_in(new)
    group = field.path[0]
    siblings = {one.path[1]: one.value_in(new) for one in fields if one.path[0] == group}
    return getattr(running, group).model_copy(update=siblings)
