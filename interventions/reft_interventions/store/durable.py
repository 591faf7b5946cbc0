"""File operations that survive kill -9 and power loss: a path holds the whole new content or the whole old one."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Iterator
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
        sync_folder(path.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write `data` into the new file `path`, and sync it."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of `source` into the new file `target`, and sync it."""
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
    sync_file(target)


def move_file(source: Path, target: Path) -> None:
    """Rename the synced file `source` to `target`, on the same file system; the folder of `target` is made."""
    make_folder(target.parent)
    source.replace(target)
    sync_folder(target.parent)


def create_from(source: Path, target: Path) -> None:
    """Rename the synced file `source` to `target`, on the same file system, unless `target` exists.

    Raises:
        FileExistsError: it does; `source` is gone all the same.
    """
    try:
        os.link(source, target)
    finally:
        source.unlink()
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Wait until the file's bytes are on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the folder's entries are on the disk."""
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
            if path.stat().st_mtime < oldest:
                path.unlink()
        except FileNotFoundError:
            continue  # its owner was faster


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold an advisory lock on `path`, which is created; the system frees it when the process dies."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
