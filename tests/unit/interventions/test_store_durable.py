"""File operations: nothing is overwritten that should not be, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from reft_interventions.store import durable


def test_create_from_renames_a_file(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    durable.write_file(source, b"new")
    durable.create_from(source, target)
    assert target.read_bytes() == b"new"
    assert not source.exists()


def test_create_from_never_overwrites(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    target.write_bytes(b"first")
    durable.write_file(source, b"second")
    with pytest.raises(FileExistsError):
        durable.create_from(source, target)
    assert target.read_bytes() == b"first"
    assert not source.exists()


def test_move_file_replaces_and_makes_the_folder(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "target"
    for data in (b"first", b"second"):
        durable.write_file(tmp_path / "source", data)
        durable.move_file(tmp_path / "source", target)
        assert target.read_bytes() == data


def test_write_file_refuses_an_existing_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"first")
    with pytest.raises(FileExistsError):
        durable.write_file(tmp_path / "file", b"second")


def test_exclusive_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), durable.exclusive_lock(tmp_path / "lock"):
        raise RuntimeError
    with durable.exclusive_lock(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()
