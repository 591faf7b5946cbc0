"""Deleted versions: kept for a time, restored, purged; and what the quota makes of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_interventions import InterventionSet, save
from reft_interventions.errors import (
    InterventionFileError,
    InterventionNotFoundError,
    InterventionQuotaError,
    InvalidInterventionNameError,
    StoreError,
)
from reft_interventions.store import InterventionStore, StoredVersion, StoreQuota
from reft_server.storage import DatabaseCatalog
from reft_server.tenants.database import memory_engine
from tests.intervention_sets import make_set

A_DAY_S = 86400.0


@pytest.fixture(params=["records", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InterventionStore]:
    """With each kind of catalog, in turn."""
    catalog = DatabaseCatalog(memory_engine()) if request.param == "database" else None
    with InterventionStore(tmp_path / "store", retention_s=A_DAY_S, catalog=catalog) as opened:
        yield opened


def put(
    store: InterventionStore, intervention_set: InterventionSet, name: str = "haiku", quota: StoreQuota | None = None
) -> StoredVersion:
    path = store.new_temp_path()
    save(intervention_set, path)
    return store.put(path, name, quota=quota)


def age(store: InterventionStore, stored: StoredVersion, by_s: float) -> None:
    """Make a tombstone older."""
    with store._catalog.transaction(stored.tenant, stored.name) as transaction:
        transaction.write(stored.deleted(time.time() - by_s))


def test_deleted_name_is_gone_and_comes_back_whole(store: InterventionStore) -> None:
    for seed in (1, 2):
        put(store, make_set(seed))
    store.delete("haiku", 1)
    store.delete("haiku")
    assert not store.has_name("haiku")
    assert store.list() == ()
    assert [stored.version for stored in store.deleted("haiku")] == [1, 2]
    # The latest delete is undone, not the one before it.
    assert [stored.version for stored in store.restore("haiku")] == [2]
    assert [stored.version for stored in store.restore("haiku")] == [1]
    assert [store.load(stored).content_hash for stored in store.versions("haiku")] == [
        make_set(seed).content_hash for seed in (1, 2)
    ]
    with pytest.raises(InterventionNotFoundError, match="nothing of 'haiku'"):
        store.restore("haiku")


def test_one_version_is_restored_by_number_or_hash_and_again_without_effect(store: InterventionStore) -> None:
    versions = [put(store, make_set(seed)) for seed in range(3)]
    store.delete("haiku")
    assert store.restore("haiku", 2) == (versions[1],)
    assert store.restore("haiku", 2) == (versions[1],)
    assert store.restore("haiku", versions[0].content_hash[:19]) == (versions[0],)
    assert [stored.version for stored in store.versions("haiku")] == [1, 2]
    with pytest.raises(InterventionNotFoundError, match="no version 9"):
        store.restore("haiku", 9)
    with pytest.raises(InterventionNotFoundError, match="nothing of 'limerick'"):
        store.restore("limerick")


def test_tombstones_survive_reopening_and_a_lost_index(tmp_path: Path) -> None:
    with InterventionStore(tmp_path, A_DAY_S) as store:
        first = put(store, make_set(1))
        put(store, make_set(2))
        store.delete("haiku")
        store.purge("haiku", 2)
        before = store.deleted()
    (tmp_path / "index.sqlite3").unlink()
    with InterventionStore(tmp_path, A_DAY_S) as store:
        assert store.deleted() == before
        assert store.rebuild().num_removed_files == 0
        assert store.restore("haiku") == (first,)
        assert put(store, make_set(3)).version == 3


def test_purge_ends_a_tombstone_for_good_and_frees_its_file(store: InterventionStore) -> None:
    first, second = put(store, make_set(1)), put(store, make_set(2))
    store.delete("haiku")
    assert [stored.version for stored in store.purge("haiku", 1)] == [1]
    assert not store.blob_path(first).exists()
    assert store.blob_path(second).exists()
    with pytest.raises(InterventionNotFoundError):
        store.restore("haiku", 1)
    assert [stored.version for stored in store.purge("haiku")] == [2]
    assert store.purge("haiku") == ()
    assert not store.blob_path(second).exists()
    assert put(store, make_set(1)).version == 3


def test_purge_keeps_a_file_that_a_living_or_restorable_version_uses(store: InterventionStore) -> None:
    shared = make_set(1)
    for name in ("a", "b", "c"):
        put(store, shared, name)
    store.delete("a")
    store.delete("b")
    store.purge("a")
    store.delete("c", is_final=True)
    assert store.load(store.restore("b")[0]).content_hash == shared.content_hash
    # Its content is still there, but it was purged.
    with pytest.raises(InterventionNotFoundError):
        store.restore("a")


def test_only_what_is_older_than_the_retention_time_expires(store: InterventionStore) -> None:
    old, young = put(store, make_set(1)), put(store, make_set(2), "young")
    other = store.namespace("acme")
    put(other, make_set(3))
    store.delete("haiku")
    store.delete("young")
    other.delete("haiku")
    assert store.purge_expired() == ()
    age(store, old, 2 * A_DAY_S)
    assert [stored.reference for stored in store.purge_expired()] == ["haiku@1"]
    assert not store.blob_path(old).exists()
    assert store.restore("young") == (young,)
    assert [stored.tenant for stored in other.restore("haiku")] == ["acme"]


def test_without_retention_a_delete_is_final(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        stored = put(store, make_set(1))
        store.delete("haiku")
        assert not store.blob_path(stored).exists()
        assert store.deleted() == ()
        with pytest.raises(InterventionNotFoundError):
            store.restore("haiku")


def test_tombstone_of_an_older_release_whose_file_is_gone_is_an_error(tmp_path: Path) -> None:
    with InterventionStore(tmp_path, A_DAY_S) as store:
        stored = put(store, make_set(1))
        store.delete("haiku")
        path = tmp_path / "refs/haiku/1.json"
        record = json.loads(path.read_text())
        del record["purged_at"]
        path.write_text(json.dumps(record))
        store.blob_path(stored).unlink()
        store.rebuild()
        with pytest.raises(StoreError, match="haiku@1"):
            store.restore("haiku")


def test_namespaces_restore_their_own_only(store: InterventionStore) -> None:
    acme, other = store.namespace("acme"), store.namespace("other")
    put(acme, make_set(1))
    acme.delete("haiku")
    assert other.deleted() == store.deleted() == ()
    for stranger in (other, store):
        assert stranger.purge("haiku") == ()
        with pytest.raises(InterventionNotFoundError):
            stranger.restore("haiku")
    assert len(acme.restore("haiku")) == 1


def test_deleted_versions_give_way_to_new_ones_oldest_first(store: InterventionStore) -> None:
    size = put(store, make_set(1), "a").size_bytes
    quota = StoreQuota(max_bytes=2 * size + size // 2)
    put(store, make_set(2), "b", quota)
    store.delete("a")
    store.delete("b")
    put(store, make_set(3), "c", quota)
    assert [stored.name for stored in store.deleted()] == ["b"]
    put(store, make_set(4), "d", quota)
    assert store.deleted() == ()
    with pytest.raises(InterventionQuotaError):
        put(store, make_set(5), "e", quota)


def test_restore_respects_the_quota(store: InterventionStore) -> None:
    put(store, make_set(1), "a")
    store.delete("a")
    put(store, make_set(2), "b")
    with pytest.raises(InterventionQuotaError):
        store.restore("a", quota=StoreQuota(max_names=1))
    with pytest.raises(InterventionQuotaError):
        store.restore("a", quota=StoreQuota(max_bytes=store.resolve("b").size_bytes + 1))
    assert not store.has_name("a")
    assert len(store.restore("a", quota=StoreQuota(max_names=2))) == 1


def test_quota_counts_names_and_bytes_to_the_last_one(store: InterventionStore) -> None:
    first = put(store, make_set(1), "a", StoreQuota(max_names=1, max_bytes=1 << 20))
    full = StoreQuota(max_names=1, max_bytes=first.size_bytes)
    assert put(store, make_set(1), "a", full) == first, "what is there takes no more room"
    with pytest.raises(InterventionQuotaError):
        put(store, make_set(2), "a", full)
    with pytest.raises(InterventionQuotaError):
        put(store, make_set(2), "b", StoreQuota(max_names=1))
    second = put(store, make_set(2), "a", StoreQuota(max_names=1))
    store.delete("a", 2)
    exact = StoreQuota(max_names=1, max_bytes=first.size_bytes + second.size_bytes)
    assert store.restore("a", 2, exact) == (second,)
    put(store, make_set(2), "a", exact)


def test_deleted_versions_give_way_for_their_own_tenant_and_no_sooner_than_needed(store: InterventionStore) -> None:
    acme, other = store.namespace("acme"), store.namespace("other")
    size = put(other, make_set(1), "kept").size_bytes
    other.delete("kept")
    doomed = put(acme, make_set(2), "a")
    acme.delete("a")
    put(acme, make_set(3), "b", StoreQuota(max_bytes=2 * size))
    assert [one.name for one in acme.deleted()] == ["a"]
    put(acme, make_set(4), "c", StoreQuota(max_bytes=2 * size))
    assert acme.deleted() == ()
    assert not store.blob_path(doomed).exists()
    assert [one.name for one in other.deleted()] == ["kept"]


@pytest.mark.parametrize("tenant", ["..", "a/b", "@acme", "Acme"])
def test_tenant_that_could_leave_the_folder_is_refused(store: InterventionStore, tenant: str) -> None:
    with pytest.raises(InvalidInterventionNameError):
        store.namespace(tenant)


def test_refused_file_from_elsewhere_stays_and_its_copy_goes(store: InterventionStore, tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"no intervention")
    with pytest.raises(InterventionFileError):
        store.put(path, "haiku")
    assert path.exists()
    assert list((tmp_path / "store" / "tmp").iterdir()) == []
