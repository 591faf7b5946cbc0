"""Records are the truth: what happens to them behind the index's back is seen, in every namespace."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from reft_interventions import save
from reft_interventions.store import InterventionStore, StoredVersion, durable
from tests.intervention_sets import make_set


def put(store: InterventionStore, seed: int) -> StoredVersion:
    path = store.new_temp_path()
    save(make_set(seed), path)
    return store.put(path, "haiku")


def reopened(store: InterventionStore, root: Path) -> InterventionStore:
    store.close()
    return InterventionStore(root, 3600.0)


def rebuilt(store: InterventionStore, root: Path) -> InterventionStore:
    store.rebuild()
    return store


def with_lost_index(store: InterventionStore, root: Path) -> InterventionStore:
    store.close()
    for path in root.glob("index.sqlite3*"):
        path.unlink()
    return InterventionStore(root, 3600.0)


looks = pytest.mark.parametrize("look", [reopened, rebuilt, with_lost_index])
Look = Callable[[InterventionStore, Path], InterventionStore]


@looks
@pytest.mark.parametrize("tenant", ["", "acme"])
def test_record_that_came_back_and_folder_that_went_are_seen(tmp_path: Path, look: Look, tenant: str) -> None:
    with InterventionStore(tmp_path, 3600.0) as store:
        own = store.namespace(tenant)
        put(own, 1)
        folder = tmp_path / "refs" / (f"@{tenant}" if tenant else "") / "haiku"
        shutil.copy(folder / "1.json", tmp_path / "kept")
        own.delete("haiku")
        (tmp_path / "kept").replace(folder / "1.json")
        later_ns = folder.stat().st_mtime_ns + 1_000_000_000  # not within one tick of the file system's clock
        os.utime(folder, ns=(later_ns, later_ns))
        with look(store, tmp_path) as later:
            own = later.namespace(tenant)
            assert own.resolve("haiku").version == 1
            assert own.deleted() == ()
            shutil.rmtree(folder)
            with look(later, tmp_path) as last:
                assert last.namespace(tenant).list() == ()
                assert last.counts() == (0, 0)


def test_writer_sees_a_record_that_came_without_a_change_of_its_folders_time(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        for seed in (1, 2):
            put(store, seed)
        folder = tmp_path / "refs/haiku"
        (folder / "2.json").rename(tmp_path / "kept")
        store.rebuild()
        assert store.resolve("haiku").version == 1
        time_ns = folder.stat().st_mtime_ns
        (tmp_path / "kept").rename(folder / "2.json")
        os.utime(folder, ns=(time_ns, time_ns))
        assert put(store, 2).version == 2, "the newest has this content already"


def test_number_follows_the_highest_that_is_left(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        for seed in (1, 2):
            put(store, seed)
        (tmp_path / "refs/haiku/1.json").unlink()
        assert put(store, 3).version == 3


def test_version_that_is_new_never_takes_the_place_of_another(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        stored = put(store, 1)
        with pytest.raises(FileExistsError), store._catalog.transaction("", "haiku") as transaction:
            transaction.write(stored.deleted(1.0), is_new=True)
        assert store.rebuild().num_records == 1
        assert store.resolve("haiku") == stored


def test_damaged_index_is_set_aside_for_whoever_wants_to_look_at_it(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        put(store, 1)
    (tmp_path / "index.sqlite3").write_bytes(b"rotten" * 1000)
    with InterventionStore(tmp_path) as store:
        assert store.resolve("haiku").version == 1
    assert any(path.read_bytes().startswith(b"rotten") for path in tmp_path.glob("damaged-*-index.sqlite3"))


def test_one_opener_waits_for_another(tmp_path: Path) -> None:
    with InterventionStore(tmp_path):
        pass
    opener = threading.Thread(target=lambda: InterventionStore(tmp_path).close())
    with durable.exclusive_lock(tmp_path / "open.lock"):
        opener.start()
        opener.join(0.1)
        assert opener.is_alive()
    opener.join(60)
    assert not opener.is_alive()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "other"),
        ("name", "sonnet"),
        ("version", 2),
        ("content_hash", "sha256:" + "a" * 64 + "/../../x"),
        ("content_hash", "sha256:" + "a" * 63),
    ],
)
def test_record_in_the_wrong_place_or_with_a_bad_hash_is_not_read(tmp_path: Path, field: str, value: object) -> None:
    with InterventionStore(tmp_path) as store:
        put(store.namespace("acme"), 1)
        path = tmp_path / "refs/@acme/haiku/1.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
        assert store.rebuild().num_unreadable_records == 1
        assert store.namespace("acme").list() == store.namespace("other").list() == ()
