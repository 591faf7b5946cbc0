"""What a name means to a tenant, what must end with a name's last version, and what must not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reft_interventions import save
from reft_interventions.errors import (
    InterventionConflictError,
    InterventionNotFoundError,
    InterventionPreconditionError,
    InterventionQuotaError,
)
from reft_interventions.store import InterventionStore, PutCondition, StoredVersion
from reft_server.errors import TenantNotFoundError
from reft_server.tenants import SHARED, TenantDirectory
from reft_server.tenants.model import TenantLimits
from reft_server.tenants.namespaces import Namespaces
from reft_server.tenants.set_book import Origin, SetBook
from tests.intervention_sets import make_set


class Sets:
    """A store with the tenants acme and other, and what is said about their sets."""

    def __init__(self, store: InterventionStore, directory: TenantDirectory) -> None:
        self.store = store
        self.directory = directory
        self.namespaces = Namespaces(store, directory)
        self.book = SetBook(directory, self.namespaces.lives)

    def put(self, seed: int, name: str, tenant: str, condition: PutCondition | None = None) -> StoredVersion:
        path = self.store.new_temp_path()
        save(make_set(seed), path)
        return self.namespaces.put(path, name, make_set(seed), tenant, condition, Origin())

    def names(self, tenant: str) -> list[str]:
        return [self.namespaces.name_of(stored, tenant) for stored in self.namespaces.list(tenant)]


@pytest.fixture
def sets(tmp_path: Path) -> Iterator[Sets]:
    directory = TenantDirectory.in_memory()
    directory.open()
    for tenant in ("acme", "other"):
        directory.create_tenant(tenant)
    with InterventionStore(tmp_path / "store", 3600.0) as store:
        yield Sets(store, directory)
    directory.close()


def test_bare_name_is_the_own_set_and_else_the_shared_one(sets: Sets) -> None:
    shared, own = sets.put(1, "haiku", SHARED), sets.put(2, "haiku", "acme")
    resolve, name_of = sets.namespaces.resolve, sets.namespaces.name_of
    assert resolve("haiku", None, "acme") == own
    assert resolve("haiku", None, "other") == shared
    assert resolve("shared/haiku", None, "acme") == resolve("haiku", None, SHARED) == shared
    assert resolve("acme/haiku", None, "acme") == own
    assert (name_of(own, "acme"), name_of(own, "other")) == ("haiku", "acme/haiku")
    assert (name_of(shared, "acme"), name_of(shared, "other")) == ("shared/haiku", "haiku")
    assert sets.names("acme") == ["haiku", "shared/haiku"]
    assert sets.names("other") == ["haiku"]


def test_grant_opens_one_set_to_one_tenant_and_suggests_no_other(sets: Sets) -> None:
    for name in ("haiku", "haikus"):
        sets.put(1, name, "acme")
    sets.directory.grant("acme", "haiku", "other")
    sets.directory.grant("acme", "haikuu", "other")
    assert sets.namespaces.resolve("acme/haiku", None, "other").tenant == "acme"
    assert sets.names("other") == ["acme/haiku"]
    for name in ("haikus", "haikuu"):
        with pytest.raises(InterventionNotFoundError) as caught:
            sets.namespaces.resolve(f"acme/{name}", None, "other")
        assert caught.value.message == f"there is no intervention 'acme/{name}'"
    with pytest.raises(InterventionNotFoundError):
        sets.namespaces.resolve("haiku", None, "other")


def test_put_and_restore_keep_to_the_tenants_quota_and_the_condition(sets: Sets) -> None:
    sets.directory.set_limits("acme", TenantLimits(max_sets=1))
    sets.put(1, "haiku", "acme")
    with pytest.raises(InterventionQuotaError):
        sets.put(2, "sonnet", "acme")
    with pytest.raises(InterventionPreconditionError):
        sets.put(2, "haiku", "acme", PutCondition(must_be_new=True))
    sets.namespaces.delete("haiku", None, "acme")
    sets.put(2, "sonnet", "acme")
    with pytest.raises(InterventionQuotaError):
        sets.namespaces.restore("haiku", None, "acme")


def test_tenant_that_was_deleted_meanwhile_stores_nothing(sets: Sets) -> None:
    sets.directory.close_tenant("other")
    sets.directory.delete_tenant("other")
    with pytest.raises(TenantNotFoundError):
        sets.put(1, "haiku", "other")
    assert sets.store.counts() == (0, 0)


def test_version_that_an_alias_names_is_neither_deleted_nor_purged(sets: Sets) -> None:
    for seed in (1, 2):
        sets.put(seed, "haiku", "acme")
    sets.book.move_alias("acme", "haiku", "prod", 1)
    for end in (sets.namespaces.delete, sets.namespaces.purge):
        with pytest.raises(InterventionConflictError, match="'prod' names haiku@1"):
            end("haiku", 1, "acme")
    assert sets.namespaces.resolve("haiku", "prod", "acme").version == 1
    assert [stored.version for stored in sets.namespaces.purge("haiku", 2, "acme")] == [2]


def test_grants_end_with_the_last_version_and_notes_with_what_can_be_restored(sets: Sets) -> None:
    for seed in (1, 2):
        sets.put(seed, "haiku", "acme")
    sets.book.describe("acme", "haiku", {"description": "verse"})
    sets.directory.grant("acme", "haiku", "other")
    sets.namespaces.delete("haiku", 2, "acme")
    assert sets.names("other") == ["acme/haiku"]
    sets.namespaces.delete("haiku", None, "acme")
    assert sets.book.notes("acme", "haiku").description == "verse"
    sets.namespaces.restore("haiku", 1, "acme")
    assert sets.names("other") == [], "a set that comes back is granted to nobody"
    sets.namespaces.purge("haiku", None, "acme")
    assert not sets.book.notes("acme", "haiku").description
    assert sets.book.origins("acme", "haiku") == {}


def test_what_expires_is_forgotten_like_what_is_purged(sets: Sets) -> None:
    for tenant in ("acme", "other"):
        sets.put(1, "haiku", tenant)
        sets.book.describe(tenant, "haiku", {"description": tenant})
    sets.namespaces.delete("haiku", None, "acme")
    sets.store.retention_s = 0.0
    assert [stored.tenant for stored in sets.namespaces.purge_expired()] == ["acme"]
    assert not sets.book.notes("acme", "haiku").description
    assert sets.book.notes("other", "haiku").description == "other"


def test_alias_that_was_deleted_leaves_no_history_to_the_next_one(sets: Sets) -> None:
    for seed in (1, 2):
        sets.put(seed, "haiku", "acme")
        sets.book.move_alias("acme", "haiku", "prod", seed)
    sets.book.delete_alias("acme", "haiku", "prod")
    sets.book.move_alias("acme", "haiku", "prod", 2)
    with pytest.raises(InterventionConflictError, match="named no version before 2"):
        sets.book.roll_back("acme", "haiku", "prod")


def test_limit_of_zero_is_a_limit_and_no_default(sets: Sets) -> None:
    sets.directory.defaults = TenantLimits(requests_per_minute=5, tokens_per_minute=7)
    sets.directory.set_limits("acme", TenantLimits(requests_per_minute=0))
    assert sets.directory.limits_of("acme") == TenantLimits(requests_per_minute=0, tokens_per_minute=7)
