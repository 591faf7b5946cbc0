"""What a name means to a tenant.

`haiku` is the tenant's own set, or else the shared one. `acme/haiku` is the set of the tenant acme, which must have
granted it; `shared/haiku` is the shared one, whatever the tenant has. A grant never changes what a bare name means.
`haiku@prod` is the version that the set's owner lets the alias `prod` name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from reft_interventions.errors import InterventionConflictError, InterventionNotFoundError
from reft_interventions.intervention_set import InterventionSet
from reft_interventions.store import InterventionStore, PutCondition, StoredVersion, StoreQuota, check_name, is_alias
from reft_server.errors import TenantNotFoundError

from .directory import TenantDirectory
from .model import SHARED, SHARED_NAME, tenant_of_wire_name
from .set_book import Origin, SetBook, no_alias
from .set_notes import SetNotes
from .snapshot import EMPTY, Snapshot


class Namespaces:
    """The store as each tenant sees it. What a tenant may not use answers as what does not exist."""

    def __init__(self, store: InterventionStore, directory: TenantDirectory | None = None) -> None:
        self._store = store
        self._directory = directory

    def resolve(self, name: str, version: int | str | None, tenant: str) -> StoredVersion:
        """Find a living version; `version` may be an alias too. Raises as `InterventionStore.resolve` does."""
        store, bare = self._locate(name, tenant)
        if isinstance(version, str) and is_alias(version):
            newest = store.resolve(bare)
            number = self.notes(newest).aliases.get(version)
            if number is None:
                raise no_alias(name, version)
            return store.resolve(bare, number)
        return store.resolve(bare, version)

    def notes(self, stored: StoredVersion) -> SetNotes:
        """Description, labels and aliases of a set."""
        return self._snapshot.sets.get((stored.tenant, stored.name), SetNotes())

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

    def put(
        self,
        path: Path,
        name: str,
        intervention_set: InterventionSet,
        tenant: str,
        condition: PutCondition | None,
        origin: Origin,
    ) -> StoredVersion:
        """Store in the tenant's own namespace, within its quota. Raises as `InterventionStore.put` does."""
        if self._directory is not None and tenant not in self._snapshot.tenants:
            raise TenantNotFoundError("This tenant has been deleted")
        with self._recording("set.upload", tenant, name, content_hash=intervention_set.content_hash):
            own = self._store.namespace(tenant)
            stored = own.put(path, name, intervention_set, self.quota(tenant), condition)
        if self._directory is not None:
            SetBook(self._directory).note_origin(stored, origin)
        return stored

    def delete(self, name: str, version: int | str | None, tenant: str) -> tuple[StoredVersion, ...]:
        """Delete in the tenant's own namespace.

        The grants of a name end with its last version: a later set of that name is nobody else's business. Aliases and
        notes stay as long as something can be restored.

        Raises:
            InterventionConflictError: an alias names that version.
            InterventionNotFoundError: there is nothing to delete.
            StoreError: the disk or the index failed.
        """
        own = self._store.namespace(tenant)
        with self._exclusive():
            self._check_no_alias(own, name, version)
            doomed = own.versions(name) if version is None else (own.resolve(name, version),)
            with self._recording("set.delete", tenant, name, versions=[stored.version for stored in doomed]):
                deleted = own.delete(name, version)
            self._tidy(own, name, tenant)
        return deleted

    def forget(self, tenant: str) -> tuple[StoredVersion, ...]:
        """Purge everything in a tenant's namespace. Raises as `InterventionStore.purge` does."""
        own = self._store.namespace(tenant)
        names = {stored.name for stored in (*own.list(), *own.deleted())}
        return tuple(stored for name in sorted(names) for stored in self._purge(own, name, None, tenant))

    def purge(self, name: str, version: int | str | None, tenant: str) -> tuple[StoredVersion, ...]:
        """Delete what lives, so that it can't be restored, and end what was deleted. Raises as `delete` does."""
        own = self._store.namespace(tenant)
        with self._exclusive():
            purged = self._purge(own, name, version, tenant)
            self._tidy(own, name, tenant)
        return purged

    def _purge(
        self, own: InterventionStore, name: str, version: int | str | None, tenant: str
    ) -> tuple[StoredVersion, ...]:
        with self._recording("set.purge", tenant, name, version=version):
            purged = own.purge(name, version)
            try:
                self._check_no_alias(own, name, version)
                purged += own.delete(name, version, is_final=True)
            except InterventionNotFoundError:
                if not purged:
                    raise
        return purged

    def restore(self, name: str, version: int | str | None, tenant: str) -> tuple[StoredVersion, ...]:
        """Restore in the tenant's own namespace. Raises as `InterventionStore.restore` does."""
        with self._recording("set.restore", tenant, name, version=version):
            return self._store.namespace(tenant).restore(name, version, self.quota(tenant))

    def deleted(self, name: str | None, tenant: str) -> tuple[StoredVersion, ...]:
        """What can be restored in the tenant's own namespace: of one name, or of all."""
        return self._store.namespace(tenant).deleted(name)

    def purge_expired(self) -> tuple[StoredVersion, ...]:
        """End the deleted versions of all tenants whose retention time is over."""
        purged = self._store.purge_expired()
        for stored in purged:
            with self._recording("set.expire", stored.tenant, stored.name, version=stored.version):
                pass  # nobody's decision: the entry of the delete said what would happen
        for tenant, name in dict.fromkeys((stored.tenant, stored.name) for stored in purged):
            self._tidy(self._store.namespace(tenant), name, tenant)
        return purged

    def lives(self, owner: str, name: str, version: int) -> bool:
        """Whether a version of an owner's set can be found."""
        own = self._store.namespace(owner)
        return own.has_name(name) and any(stored.version == version for stored in own.versions(name))

    def _exclusive(self) -> AbstractContextManager[None]:
        """No server moves an alias meanwhile, and those that were moved are known."""
        return nullcontext() if self._directory is None else self._directory.exclusive()

    @contextmanager
    def _recording(self, action: str, tenant: str, name: str, **details: object) -> Iterator[None]:
        """A change of the store, written to the audit log before it happens."""
        if self._directory is None:
            yield
        else:
            with self._directory.recording(action, tenant, name, **details):
                yield

    def _check_no_alias(self, own: InterventionStore, name: str, version: int | str | None) -> None:
        if version is None:
            return
        stored = own.resolve(name, version)
        alias = next((one for one, number in self.notes(stored).aliases.items() if number == stored.version), None)
        if alias is not None:
            raise InterventionConflictError(
                f"the alias {alias!r} names {stored.reference}: move or delete it first", param="version"
            )

    def _tidy(self, own: InterventionStore, name: str, tenant: str) -> None:
        """What must not outlive a name's last version."""
        if self._directory is None or own.has_name(name):
            return
        self._directory.withdraw(tenant, name)
        if not own.deleted(name):
            SetBook(self._directory).forget(tenant, name)

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
