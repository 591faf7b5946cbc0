"""Tenants with the same names in one store: what one has, lacks or deletes is nothing to another."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_interventions import save
from reft_interventions.errors import (
    InterventionNotFoundError,
    InterventionPreconditionError,
    InterventionQuotaError,
    StoreError,
)
from reft_interventions.store import InterventionStore, PutCondition, StoredVersion, StoreQuota
from reft_interventions.store.index import SCHEMA_VERSION
from reft_interventions.store.record_catalog import RecordCatalog
from reft_server.storage import DatabaseCatalog
from reft_server.tenants.database import memory_engine
from tests.intervention_sets import make_set


@pytest.fixture(params=["records", "database"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[InterventionStore]:
    """With each kind of catalog, in turn."""
    catalog = DatabaseCatalog(memory_engine()) if request.param == "database" else None
    with InterventionStore(tmp_path / "store", retention_s=3600.0, catalog=catalog) as opened:
        yield opened


def put(
    store: InterventionStore,
    seed: int,
    name: str = "haiku",
    quota: StoreQuota | None = None,
    condition: PutCondition | None = None,
) -> StoredVersion:
    path = store.new_temp_path()
    save(make_set(seed), path)
    return store.put(path, name, quota=quota, condition=condition)


def test_newest_version_of_one_tenant_hides_none_of_another(store: InterventionStore) -> None:
    acme, other = store.namespace("acme"), store.namespace("other")
    put(acme, 1)
    for seed in (1, 2, 3):
        put(other, seed)
    assert [one.reference for one in acme.list()] == ["haiku@1"]
    assert [one.reference for one in other.list()] == ["haiku@3"]
    assert store.list() == ()
    assert store.counts() == (2, 4)


def test_quota_counts_what_the_tenant_has_alone(store: InterventionStore) -> None:
    acme, other = store.namespace("acme"), store.namespace("other")
    size = put(other, 1).size_bytes
    put(other, 2, "sonnet")
    quota = StoreQuota(max_names=1, max_bytes=2 * size)
    put(acme, 3, quota=quota)
    other.delete("haiku")
    assert len(other.restore("haiku", quota=StoreQuota(max_names=2, max_bytes=2 * size))) == 1
    with pytest.raises(InterventionQuotaError):
        put(acme, 4, "sonnet", quota)


def test_deleted_version_is_not_found_by_its_hash(store: InterventionStore) -> None:
    stored = put(store, 1)
    put(store, 2)
    store.delete("haiku", 1)
    with pytest.raises(InterventionNotFoundError):
        store.resolve("haiku", stored.content_hash)


def test_content_to_replace_must_be_there(store: InterventionStore) -> None:
    with pytest.raises(InterventionPreconditionError, match="no 'haiku' to replace"):
        put(store, 1, condition=PutCondition(content_hashes=frozenset({"sha256:" + "0" * 64})))


def test_transaction_that_fails_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        stored = put(store, 1)
        catalog = store._catalog
        assert isinstance(catalog, RecordCatalog)

        def fail_half_way() -> None:
            with catalog.transaction("", "haiku") as transaction:
                transaction.put(stored.deleted(1.0))
                raise RuntimeError("planted")

        with pytest.raises(RuntimeError, match="planted"):
            fail_half_way()
        assert store.resolve("haiku") == stored


def test_index_of_the_next_schema_is_refused(tmp_path: Path) -> None:
    with InterventionStore(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "index.sqlite3") as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        InterventionStore(tmp_path)
