"""The store: versions, content addresses, deletes, damage, and other writers."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from reft_interventions import InterventionSet, save
from reft_interventions.errors import (
    InterventionConflictError,
    InterventionFileError,
    InterventionNotFoundError,
    InterventionPreconditionError,
    StoreError,
)
from reft_interventions.store import InterventionStore, PutCondition, StoredVersion
from reft_server.storage import DatabaseCatalog
from reft_server.tenants.database import memory_engine
from tests.intervention_sets import make_set


@pytest.fixture(params=["records", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InterventionStore]:
    """With each kind of catalog, in turn."""
    catalog = DatabaseCatalog(memory_engine()) if request.param == "database" else None
    with InterventionStore(tmp_path / "store", catalog=catalog) as opened:
        yield opened


def put(store: InterventionStore, intervention_set: InterventionSet, name: str = "haiku") -> StoredVersion:
    path = store.new_temp_path()
    save(intervention_set, path)
    return store.put(path, name)


def leftovers(store: InterventionStore) -> list[str]:
    return [path.name for path in store.new_temp_path().parent.iterdir()]


def test_put_returns_what_resolve_and_load_give_back(store: InterventionStore) -> None:
    original = make_set(1)
    stored = put(store, original)
    assert (stored.name, stored.version, stored.content_hash) == ("haiku", 1, original.content_hash)
    assert stored.manifest == original.manifest
    assert stored.size_bytes == store.blob_path(stored).stat().st_size
    assert store.resolve("haiku") == stored
    loaded = store.load(store.resolve("haiku", 1))
    assert loaded.content_hash == original.content_hash
    assert loaded.fold().content_hash == original.fold().content_hash
    assert leftovers(store) == []


def test_put_moves_a_temporary_file_but_only_copies_any_other(store: InterventionStore, tmp_path: Path) -> None:
    own = tmp_path / "mine.safetensors"
    save(make_set(1), own)
    first = store.put(own, "mine")
    assert own.exists()
    own.write_bytes(b"changed later")
    assert store.load(first).content_hash == make_set(1).content_hash
    temporary = store.new_temp_path()
    save(make_set(2), temporary)
    store.put(temporary, "mine")
    assert not temporary.exists()


def test_put_counts_versions_up_and_is_idempotent_on_the_newest(store: InterventionStore) -> None:
    first, second = make_set(1), make_set(2)
    assert put(store, first).version == 1
    assert put(store, first).version == 1
    assert put(store, second).version == 2
    assert put(store, second).version == 2
    assert put(store, first).version == 3
    assert [stored.version for stored in store.versions("haiku")] == [1, 2, 3]
    assert store.blob_path(store.resolve("haiku", 1)) == store.blob_path(store.resolve("haiku", 3))


def test_version_numbers_are_never_used_again(store: InterventionStore) -> None:
    for seed in range(3):
        put(store, make_set(seed))
    store.delete("haiku", 3)
    assert put(store, make_set(9)).version == 4
    store.delete("haiku")
    assert put(store, make_set(10)).version == 5
    store.rebuild()
    store.delete("haiku")
    assert put(store, make_set(11)).version == 6


def test_delete_of_the_newest_version_brings_back_the_one_before(store: InterventionStore) -> None:
    put(store, make_set(1))
    put(store, make_set(2))
    assert [stored.version for stored in store.delete("haiku", 2)] == [2]
    assert store.resolve("haiku").version == 1
    # Now version 1 is the newest: storing its content again changes nothing.
    assert put(store, make_set(1)).version == 1


def test_delete_keeps_a_file_that_another_version_or_name_uses(store: InterventionStore) -> None:
    shared = make_set(1)
    first, other = put(store, shared, "a"), put(store, shared, "b")
    assert store.blob_path(first) == store.blob_path(other)
    store.delete("a")
    assert store.load(other).content_hash == shared.content_hash
    store.delete("b")
    assert not store.blob_path(other).exists()


def test_delete_by_hash_deletes_the_version_it_names(store: InterventionStore) -> None:
    put(store, make_set(1))
    second = put(store, make_set(2))
    assert [stored.version for stored in store.delete("haiku", second.content_hash[:19])] == [2]
    assert [stored.version for stored in store.versions("haiku")] == [1]


def test_an_open_file_outlives_its_version(store: InterventionStore) -> None:
    stored = put(store, make_set(1))
    with store.open(stored) as file:
        store.delete("haiku")
        assert len(file.read()) == stored.size_bytes
    with pytest.raises(InterventionNotFoundError, match="haiku"):
        store.open(stored)
    with pytest.raises(InterventionNotFoundError, match="haiku"):
        store.load(stored)


def test_resolve_by_hash_prefix_finds_the_newest_with_that_content(store: InterventionStore) -> None:
    first = put(store, make_set(1))
    put(store, make_set(2))
    put(store, make_set(1))
    assert store.resolve("haiku", first.content_hash).version == 3
    assert store.resolve("haiku", first.content_hash[:19]).version == 3
    with pytest.raises(InterventionNotFoundError):
        store.resolve("haiku", "sha256:" + "0" * 12)


def test_resolve_refuses_a_hash_prefix_that_fits_two_contents(store: InterventionStore) -> None:
    put(store, make_set(1))
    second = put(store, make_set(2))
    twin = store.resolve("haiku", 1).content_hash[:20]
    with store._catalog.transaction("", "haiku") as transaction:
        transaction.write(replace(second, content_hash=twin + second.content_hash[20:]))
    with pytest.raises(InterventionConflictError, match="more digits"):
        store.resolve("haiku", twin[:19])


@pytest.mark.parametrize(
    ("name", "version", "hint"),
    [("haikus", None, "'haiku'"), ("haiku", 7, "it has 1, 3"), ("haiku", 2, "was deleted"), ("zzzz", None, "zzzz")],
)
def test_resolve_says_what_there_is_instead(
    store: InterventionStore, name: str, version: int | None, hint: str
) -> None:
    for seed in range(3):
        put(store, make_set(seed))
    store.delete("haiku", 2)
    with pytest.raises(InterventionNotFoundError, match=hint):
        store.resolve(name, version)
    with pytest.raises(InterventionNotFoundError):
        store.delete(name, version)


def test_list_gives_the_newest_living_version_of_every_name(store: InterventionStore) -> None:
    put(store, make_set(1), "b")
    put(store, make_set(2), "b")
    put(store, make_set(3), "a")
    put(store, make_set(4), "gone")
    store.delete("gone")
    assert [stored.reference for stored in store.list()] == ["a@1", "b@2"]
    assert store.counts() == (2, 3)
    with pytest.raises(InterventionNotFoundError):
        store.versions("gone")


def test_has_content_remembers_deleted_versions(store: InterventionStore) -> None:
    stored = put(store, make_set(1))
    store.delete("haiku")
    assert store.has_content("haiku", stored.content_hash)
    assert not store.has_content("other", stored.content_hash)


def test_everything_is_there_after_reopening(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        for seed in range(3):
            put(store, make_set(seed))
        store.delete("haiku", 2)
        before = store.versions("haiku")
    with InterventionStore(tmp_path) as store:
        assert store.versions("haiku") == before


def test_a_refused_file_changes_nothing(store: InterventionStore) -> None:
    put(store, make_set(1))
    path = store.new_temp_path()
    path.write_bytes(b"not an intervention file")
    before = snapshot(store)
    with pytest.raises(InterventionFileError):
        store.put(path, "haiku")
    assert snapshot(store) == before


@pytest.mark.parametrize("where", [8, 300, -1], ids=["header", "manifest", "tensor"])
def test_a_rotten_file_is_an_error_and_a_new_upload_heals_it(store: InterventionStore, where: int) -> None:
    stored = put(store, make_set(1))
    blob = store.blob_path(stored)
    data = bytearray(blob.read_bytes())
    data[where] ^= 0x01
    blob.write_bytes(data)
    with pytest.raises(StoreError, match="haiku@1"):
        store.load(stored)
    assert put(store, make_set(1)) == stored
    assert store.load(stored).content_hash == stored.content_hash


def test_a_lost_file_is_an_error(store: InterventionStore) -> None:
    stored = put(store, make_set(1))
    store.blob_path(stored).unlink()
    with pytest.raises(StoreError, match="haiku@1"):
        store.load(stored)
    with pytest.raises(StoreError, match="haiku@1"):
        store.open(stored)


@pytest.mark.parametrize("damage", ["removed", "garbage", "truncated", "older", "middle"])
def test_a_lost_or_damaged_index_is_rebuilt_from_the_records(tmp_path: Path, damage: str) -> None:
    with InterventionStore(tmp_path) as store:
        for seed in range(4):
            put(store, make_set(seed))
        put(store, make_set(5), "pirate")
        store.delete("haiku", 3)
        before = (store.versions("haiku"), store.list())
    index = tmp_path / "index.sqlite3"
    data = index.read_bytes()
    damaged = {
        "garbage": b"garbage" * 1000,
        "truncated": data[: len(data) // 2],
        "older": data[:60] + b"\x00\x00\x00\x00" + data[64:],  # user_version
        "middle": data[:4096] + os.urandom(4096) + data[8192:],
    }
    index.unlink()
    if damage in damaged:
        index.write_bytes(damaged[damage])
    with InterventionStore(tmp_path) as store:
        assert (store.versions("haiku"), store.list()) == before
        assert put(store, make_set(9)).version == 5
    with InterventionStore(tmp_path) as store:
        assert store.resolve("haiku").version == 5


def test_a_store_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        put(store, make_set(1))
    index = tmp_path / "index.sqlite3"
    data = bytearray(index.read_bytes())
    data[60:64] = (99).to_bytes(4, "big")
    index.write_bytes(data)
    with pytest.raises(StoreError, match="newer release"):
        InterventionStore(tmp_path)
    assert index.read_bytes() == data


def test_rebuild_removes_only_files_that_nothing_uses(store: InterventionStore) -> None:
    kept = put(store, make_set(1))
    orphan = store.blob_path(kept).parent / f"{'0' * 64}.safetensors"
    orphan.write_bytes(b"left by a crash")
    report = store.rebuild()
    assert (report.num_records, report.num_unreadable_records, report.num_removed_files) == (1, 0, 1)
    assert not orphan.exists()
    assert store.load(kept).content_hash == kept.content_hash


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1, "name": "other"}'])
def test_an_unreadable_record_hides_its_version_and_keeps_every_file(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with InterventionStore(tmp_path) as store:
        put(store, make_set(1))
        second = put(store, make_set(2))
        (tmp_path / "refs" / "haiku" / "2.json").write_bytes(content)
        report = store.rebuild()
        assert (report.num_records, report.num_unreadable_records, report.num_removed_files) == (1, 1, 0)
        assert "haiku@2" in caplog.text
        assert store.resolve("haiku").version == 1
        assert store.blob_path(second).exists()
        assert put(store, make_set(3)).version == 3


def test_a_record_with_a_path_for_a_hash_is_refused(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        put(store, make_set(1))
        record = tmp_path / "refs" / "haiku" / "1.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"content_hash": "sha256:../../../secret"}))
        assert store.rebuild().num_unreadable_records == 1


def test_opening_removes_stale_temporary_files_and_spares_fresh_ones(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        stale, fresh = store.new_temp_path(), store.new_temp_path()
        for path in (stale, fresh):
            path.write_bytes(b"an upload")
        hours_ago = time.time() - 3 * 3600
        os.utime(stale, (hours_ago, hours_ago))
    with InterventionStore(tmp_path):
        assert not stale.exists()
        assert fresh.exists()


def test_opening_a_thousand_sets_reads_neither_sets_nor_records(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        put(store, make_set(1), "set-0")
    record = json.loads((tmp_path / "refs" / "set-0" / "1.json").read_text())
    for number in range(1, 1000):
        folder = tmp_path / "refs" / f"set-{number}"
        folder.mkdir()
        (folder / "1.json").write_text(json.dumps(record | {"name": folder.name}))
    with InterventionStore(tmp_path) as store:
        assert store.counts() == (1000, 1000)
    # In place, so that the folders' times stay: whoever reads one of these files now would stumble.
    for path in [*tmp_path.glob("refs/*/*.json"), *tmp_path.glob("blobs/*/*/*")]:
        path.write_bytes(b"unreadable")
    with InterventionStore(tmp_path) as store:
        assert store.counts() == (1000, 1000)
        assert len(store.list()) == 1000
        assert store.resolve("set-999").version == 1


def test_two_stores_on_one_folder_see_each_other(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as one, InterventionStore(tmp_path) as two:
        assert put(one, make_set(1)).version == 1
        assert two.resolve("haiku").version == 1
        assert put(two, make_set(2)).version == 2
        assert one.resolve("haiku").version == 2
        two.delete("haiku", 1)
        with pytest.raises(InterventionNotFoundError):
            one.resolve("haiku", 1)
        assert put(one, make_set(3)).version == 3


def test_concurrent_puts_each_get_a_number_of_their_own(tmp_path: Path) -> None:
    sets = [make_set(seed) for seed in range(24)]
    with InterventionStore(tmp_path) as one, InterventionStore(tmp_path) as two:
        stored: list[StoredVersion] = []
        errors: list[Exception] = []

        def work(store: InterventionStore, mine: list[InterventionSet]) -> None:
            try:
                for intervention_set in mine:
                    stored.append(put(store, intervention_set))
                    assert store.resolve("haiku").version >= stored[-1].version
            except Exception as error:  # noqa: BLE001 - shown by the assertion below, in the test's own thread
                errors.append(error)

        threads = [threading.Thread(target=work, args=((one, two)[i % 2], sets[i::4])) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert sorted(version.version for version in stored) == list(range(1, 25))
        assert {version.version: version.content_hash for version in stored} == {
            version.version: version.content_hash for version in one.versions("haiku")
        }


def test_a_writer_that_lost_the_index_can_not_overwrite_a_version(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as one:
        put(one, make_set(1))
        for path in tmp_path.glob("index.sqlite3*"):
            path.unlink()  # `one` goes on with a file that nobody else sees
        with InterventionStore(tmp_path) as two:
            second = put(two, make_set(2))
            assert put(one, make_set(3)).version == 3
            assert two.load(second).content_hash == second.content_hash


def test_a_folder_that_can_not_be_used_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError):
        InterventionStore(tmp_path / "file")


def test_a_closed_store_is_a_store_error(tmp_path: Path) -> None:
    store = InterventionStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(StoreError):
        store.list()


def snapshot(store: InterventionStore) -> dict[str, bytes]:
    root = store.new_temp_path().parents[1]
    kept = [path for folder in ("refs", "blobs") for path in sorted((root / folder).rglob("*")) if path.is_file()]
    return {str(path): path.read_bytes() for path in kept}


def test_put_holds_its_condition_against_the_newest_version(store: InterventionStore) -> None:
    def put_if(seed: int, condition: PutCondition) -> StoredVersion:
        path = store.new_temp_path()
        save(make_set(seed), path)
        return store.put(path, "haiku", condition=condition)

    new, existing = PutCondition(must_be_new=True), PutCondition(must_exist=True)
    with pytest.raises(InterventionPreconditionError, match="no 'haiku' to replace"):
        put_if(1, existing)
    first = put_if(1, new)
    with pytest.raises(InterventionPreconditionError, match="exists"):
        put_if(2, new)
    only_first = PutCondition(content_hashes=frozenset({first.content_hash}))
    assert put_if(2, only_first).version == 2
    with pytest.raises(InterventionPreconditionError, match="newest version of 'haiku' is now 2"):
        put_if(3, only_first)
    assert put_if(3, existing).version == 3
    store.delete("haiku")
    with pytest.raises(InterventionPreconditionError):
        put_if(4, existing)
    assert put_if(4, new).version == 4


def test_of_two_writers_with_one_condition_one_stores(store: InterventionStore) -> None:
    first = put(store, make_set(0))
    condition = PutCondition(content_hashes=frozenset({first.content_hash}))
    outcomes: list[str] = []

    def write(seed: int) -> None:
        path = store.new_temp_path()
        save(make_set(seed), path)
        try:
            store.put(path, "haiku", condition=condition)
            outcomes.append("stored")
        except InterventionPreconditionError:
            path.unlink()
            outcomes.append("refused")

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused", "refused", "refused", "stored"]
    assert store.resolve("haiku").version == 2
