"""File operations that survive kill -9 and power loss: a path holds the whole new content or the whole old one."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path


def temporary_path(folder: Path, suffix: str) -> Path:
    """A path in `folder` that nothing else uses; not created."""
    return folder / f"{uuid.uuid4().hex}{suffix}"


def make_folder(path: Path) -> None:
    """Create `path` and its parents, each durably."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def move_file(source: Path, target: Path) -> None:
    """Rename the synced file `source` to `target`, on the same file system."""
    source.replace(target)
    _sync(target.parent)


def create_from(source: Path, target: Path) -> None:
    """Rename the synced file `source` to `target`, on the same file system, unless `target` exists.

    Raises:
        FileExistsError: it does; `source` is gone all the same.
    """
    try:
        os.link(source, target)
    finally:
        source.unlink()
    _sync(target.parent)


def sync(*paths: Path) -> None:
    """Wait until the bytes of every file, and the entries of every folder, are on the disk.

    In parallel, because the file system commits them together: one after the other, on a busy machine, each costs a
    scheduler tick of 4 ms.
    """
    with ThreadPoolExecutor(max(1, len(paths))) as executor:
        for _ in executor.map(_sync, paths):
            pass


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_older_than(folder: Path, age_s: float) -> None:
    """Remove the files in `folder` that nothing has written to for `age_s` seconds."""
    oldest = time.time() - age_s
    for path in folder.iterdir():
        try:
            if path.is_file() and path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue  # its owner was faster


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, which is created; the system frees it when the process dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
