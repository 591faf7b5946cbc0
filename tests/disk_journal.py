"""What a power cut would lose: folder entries and bytes of files that no fsync has followed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class DiskJournal:
    """Watches renames, links, new folders and fsyncs of this process.

    Args:
        on_entry: is told of each file that has got a name, before anything else happens.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, on_entry: Callable[[Path], None]) -> None:
        self._synced_files: set[int] = set()
        self._pending: set[Path] = set()
        self._on_entry = on_entry
        real_fsync, real_mkdir = os.fsync, os.mkdir

        def fsync(descriptor: int) -> None:
            real_fsync(descriptor)
            self._synced_files.add(os.fstat(descriptor).st_ino)
            self._pending.discard(Path(f"/proc/self/fd/{descriptor}").readlink())

        def mkdir(path: Any, *args: Any, **options: Any) -> None:
            real_mkdir(path, *args, **options)
            self._pending.add(Path(path).parent)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "mkdir", mkdir)
        for name in ("replace", "link"):
            monkeypatch.setattr(os, name, self._named(getattr(os, name)))

    def _named(self, real: Callable[..., None]) -> Callable[..., None]:
        def call(source: Any, target: Any, **options: Any) -> None:
            real(source, target, **options)
            path = Path(target)
            self._pending.add(path.parent)
            if path.stat().st_ino not in self._synced_files:
                self._pending.add(path)
            self._on_entry(path)

        return call

    def unsynced(self, below: Path) -> set[Path]:
        """What a power cut could undo below a folder now."""
        return {path for path in self._pending if path.is_relative_to(below)}
