"""Which names the sets in memory have: for metrics, and for gateways that route on them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from reft_interventions.store import StoredVersion

from .engine.pool import InterventionPool
from .metrics import ResidentInterventions
from .tenants.model import label_of

_NUM_USED_NAMES = 4096
"""Names remembered by what they stand for; one that was used before so many others is resident without a name."""


class UsedNames:
    """Names by content hash, the latest used last: the pool knows hashes only."""

    def __init__(self) -> None:
        self._names: OrderedDict[str, str] = OrderedDict()
        self._in_use: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def using(self, stored: StoredVersion) -> Iterator[None]:
        """A request gets this version, and waits for it where it is not in memory."""
        name = label_of(stored.tenant, stored.name)
        key = (stored.content_hash, name)
        self._in_use[key] += 1
        try:
            yield
        finally:
            self._in_use[key] -= 1
            if not self._in_use[key]:
                del self._in_use[key]
        self._names[stored.content_hash] = name
        self._names.move_to_end(stored.content_hash)
        if len(self._names) > _NUM_USED_NAMES:
            self._names.popitem(last=False)

    def resident(self, pool: InterventionPool) -> ResidentInterventions:
        """The names of what the pool holds, the latest used first, and of what requests wait for."""
        names = dict.fromkeys(name for content_hash, name in reversed(self._names.items()) if content_hash in pool)
        loading = dict.fromkeys(name for content_hash, name in self._in_use if content_hash not in pool)
        return ResidentInterventions(tuple(names), tuple(loading))
