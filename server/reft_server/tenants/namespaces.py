"""What a name means to a tenant.

`haiku` is the tenant's own set, or else the shared one. `acme/haiku` is the set of the tenant acme, which must have
granted it; `shared/haiku` is the shared one, whatever the tenant has. A grant never changes what a bare name means.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reft_interventions.errors import InterventionNotFoundError
from reft_interventions.intervention_set import InterventionSet
from reft_interventions.store import InterventionStore, StoredVersion, StoreQuota, check_name
from reft_server.errors import TenantNotFoundError

from .directory import TenantDirectory
from .model import SHARED, SHARED_NAME, tenant_of_wire_name
from .snapshot import EMPTY, Snapshot


class Namespaces:
    """The store as each tenant sees it. What a tenant may not use answers as what does not exist."""

    def __init__(self, store: InterventionStore, directory: TenantDirectory | None = None) -> None:
        self._store = store
        self._directory = directory

    def resolve(self, name: str, version: int | str | None, tenant: str) -> StoredVersion:
        """Find a living version. Raises as `InterventionStore.resolve` does."""
        store, bare = self._locate(name, tenant)
        return store.resolve(bare, version)

    def versions(self, name: str, tenant: str) -> tuple[StoredVersion, ...]:
        """The living versions of a name, oldest first. Raises as `InterventionStore.versions` does."""
        store, bare = self._locate(name, tenant)
        return store.versions(bare)

    def list(self, tenant: str) -> tuple[StoredVersion, ...]:
        """The newest version of every name: the tenant's own, the shared ones, and what was granted."""
        found = self._store.namespace(tenant).list()
        if tenant != SHARED:
            found += self._store.namespace(SHARED).list()
        granted = [(self._store.namespace(owner), name) for owner, name in self._snapshot.granted_to(tenant)]
        return found + tuple(store.resolve(name) for store, name in granted if store.has_name(name))

    def name_of(self, stored: StoredVersion, tenant: str) -> str:
        """What a tenant that may use a set calls it."""
        if stored.tenant == tenant:
            return stored.name
        if stored.tenant == SHARED:
            is_hidden = self._store.namespace(tenant).has_name(stored.name)
            return f"{SHARED_NAME}/{stored.name}" if is_hidden else stored.name
        return f"{stored.tenant}/{stored.name}"

    def put(self, path: Path, name: str, intervention_set: InterventionSet, tenant: str) -> StoredVersion:
        """Store in the tenant's own namespace, within its quota. Raises as `InterventionStore.put` does."""
        if self._directory is not None and tenant not in self._snapshot.tenants:
            raise TenantNotFoundError("This tenant has been deleted")
        with self._recording("set.upload", tenant, name, content_hash=intervention_set.content_hash):
            return self._store.namespace(tenant).put(path, name, intervention_set, self.quota(tenant))

    def delete(self, name: str, version: int | str | None, tenant: str) -> tuple[StoredVersion, ...]:
        """Delete in the tenant's own namespace. Raises as `InterventionStore.delete` does.

        The grants of a name end with its last version: a later set of that name is nobody else's business.
        """
        own = self._store.namespace(tenant)
        doomed = own.versions(name) if version is None else (own.resolve(name, version),)
        with self._recording("set.delete", tenant, name, versions=[stored.version for stored in doomed]):
            deleted = own.delete(name, version)
        if self._directory is not None and not own.has_name(name):
            self._directory.withdraw(tenant, name)
        return deleted

    def forget(self, tenant: str) -> tuple[StoredVersion, ...]:
        """Purge everything in a tenant's namespace. Raises as `InterventionStore.purge` does."""
        own = self._store.namespace(tenant)
        purged: list[StoredVersion] = []
        living = {stored.name for stored in own.list()}
        for name in sorted(living | {stored.name for stored in own.deleted()}):
            with self._recording("set.purge", tenant, name):
                if name in living:
                    purged += own.delete(name, is_final=True)
                purged += own.purge(name)
        return tuple(purged)

    @contextmanager
    def _recording(self, action: str, tenant: str, name: str, **details: object) -> Iterator[None]:
        """A change of the store, written to the audit log before it happens."""
        if self._directory is None:
            yield
        else:
            with self._directory.recording(action, tenant, name, **details):
                yield

    def quota(self, tenant: str) -> StoreQuota:
        """What a tenant may store."""
        if self._directory is None:
            return StoreQuota()
        limits = self._directory.limits_of(tenant)
        return StoreQuota(limits.max_sets, limits.max_stored_bytes)

    @property
    def _snapshot(self) -> Snapshot:
        return EMPTY if self._directory is None else self._directory.snapshot

    def _locate(self, reference: str, tenant: str) -> tuple[InterventionStore, str]:
        prefix, slash, name = reference.rpartition("/")
        own = self._store.namespace(tenant)
        if not slash:
            is_shared = tenant != SHARED and not own.has_name(name) and self._store.namespace(SHARED).has_name(name)
            return (self._store.namespace(SHARED) if is_shared else own), name
        owner = tenant_of_wire_name(check_name(prefix))
        check_name(name)
        store = self._store.namespace(owner)
        if owner in (tenant, SHARED):
            return store, name
        if not (self._snapshot.may_read(owner, name, tenant) and store.has_name(name)):
            # The store's own message would suggest names out of the other's namespace.
            raise InterventionNotFoundError(f"there is no intervention {reference!r}", param="name")
        return store, name
