"""A power cut loses nothing that was acknowledged, and no version names a file that may not be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from reft_interventions import save
from reft_interventions.store import InterventionStore
from tests.disk_journal import DiskJournal
from tests.intervention_sets import make_set


def test_what_returns_is_on_the_disk_and_files_before_the_versions_that_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [tmp_path / f"{seed}.safetensors" for seed in range(2)]
    for seed, source in enumerate(sources):
        save(make_set(seed), source)
    root = tmp_path / "store"
    num_records = 0

    def check_record(path: Path) -> None:
        """A version can be seen from here on: all but its folder's entry is on the disk."""
        nonlocal num_records
        if path.suffix == ".json":
            num_records += 1
            assert journal.unsynced(root) == {path.parent}

    journal = DiskJournal(monkeypatch, check_record)
    with InterventionStore(root, retention_s=3600.0) as store:
        assert not journal.unsynced(root)
        stored = store.put(sources[0], "haiku")
        assert not journal.unsynced(root)
        store.blob_path(stored).write_bytes(b"rotten")
        assert store.put(sources[0], "haiku") == stored
        assert not journal.unsynced(root), "the healed file"
        store.namespace("acme").put(sources[1], "haiku")
        for change in (store.delete, store.restore, store.delete, store.purge):
            change("haiku")
            assert not journal.unsynced(root), change
    assert num_records == 6


def test_saved_file_is_on_the_disk_and_a_failed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = DiskJournal(monkeypatch, lambda path: journal.unsynced(tmp_path) == {path.parent} or pytest.fail("early"))
    save(make_set(1), tmp_path / "haiku.safetensors")
    assert not journal.unsynced(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(make_set(2), tmp_path / "haiku.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["haiku.safetensors"]
