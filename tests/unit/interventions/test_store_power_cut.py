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
