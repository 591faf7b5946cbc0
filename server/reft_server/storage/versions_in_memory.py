"""All versions of a store in memory, as the catalog's readers ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from reft_interventions.store import StoredVersion

_MAX_SUGGESTION_CANDIDATES = 200
_Names = Mapping[str, tuple[StoredVersion, ...]]
"""By name: all versions, oldest first."""


class VersionsInMemory:
    """Immutable: `with_versions` makes another, so that readers need no lock."""

    def __init__(self, tenants: Mapping[str, _Names] = MappingProxyType({})) -> None:
        self._tenants = tenants

    def with_versions(self, written: Iterable[StoredVersion]) -> VersionsInMemory:
        """These versions added, or in the place of what they were before."""
        tenants = dict(self._tenants)
        for stored in written:
            names = dict(tenants.get(stored.tenant, {}))
            others = [other for other in names.get(stored.name, ()) if other.version != stored.version]
            names[stored.name] = tuple(sorted([*others, stored], key=lambda one: one.version))
            tenants[stored.tenant] = names
        return VersionsInMemory(tenants)

    def all(self, tenant: str, name: str) -> tuple[StoredVersion, ...]:
        """Every version of a name, oldest first."""
        return self._tenants.get(tenant, {}).get(name, ())

    def living(self, tenant: str, name: str) -> list[StoredVersion]:
        """The living versions of a name, oldest first."""
        return [stored for stored in self.all(tenant, name) if stored.deleted_at is None]

    def tombstones(self, tenant: str, name: str | None = None) -> list[StoredVersion]:
        """The deleted versions that can be restored, of one name or of all, oldest deletion first."""
        names = self._tenants.get(tenant, {}) if name is None else {name: self.all(tenant, name)}
        found = [stored for versions in names.values() for stored in versions if stored.can_be_restored]
        return sorted(found, key=lambda stored: (stored.deleted_at or 0.0, stored.name, stored.version))

    def list_newest(self, tenant: str) -> list[StoredVersion]:
        """The newest living version of every name, by name."""
        return [living[-1] for name in sorted(self._tenants.get(tenant, {})) if (living := self.living(tenant, name))]

    def counts(self) -> tuple[int, int]:
        """How many names, of all tenants, have a living version, and how many living versions there are."""
        numbers = [len(self.living(tenant, name)) for tenant, names in self._tenants.items() for name in names]
        return sum(number > 0 for number in numbers), sum(numbers)

    def similar_names(self, tenant: str, name: str) -> list[str]:
        """Living names of about the same length; a bounded number."""
        living = (stored.name for stored in self.list_newest(tenant))
        return sorted(living, key=lambda other: (abs(len(other) - len(name)), other))[:_MAX_SUGGESTION_CANDIDATES]
