"""File operations: nothing is overwritten that should not be, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from reft_interventions.store import durable


def test_create_from_renames_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"new")
    durable.create_from(source, target)
    assert target.read_bytes() == b"new"
    assert not source.exists()


def test_create_from_never_overwrites(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.write_bytes(b"first")
    source.write_bytes(b"second")
    with pytest.raises(FileExistsError):
        durable.create_from(source, target)
    assert target.read_bytes() == b"first"
    assert not source.exists()


def test_move_file_replaces(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for data in (b"first", b"second"):
        (tmp_path / "source").write_bytes(data)
        durable.move_file(tmp_path / "source", target)
        assert target.read_bytes() == data


def test_sync_of_a_missing_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        durable.sync(tmp_path, tmp_path / "missing")


def test_exclusive_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), durable.exclusive_lock(tmp_path / "lock"):
        raise RuntimeError
    with durable.exclusive_lock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
