"""The waiting requests, tenant by tenant: who was served least comes first."""

from __future__ import annotations

import bisect
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from .sequence import Sequence

_MAX_IDLE_TENANTS = 1024  # whose counters are kept
_STARVED_S = 10.0
_RECENT_S = 10.0  # for so long a tenant without requests is expected back


class WaitingQueue:
    """Waiting sequences, ordered by their tenants' service, then by their own priority and arrival.

    A tenant's *service* is a virtual counter of the tokens that it was given. A tenant that comes back after a pause
    starts no lower than the least served active one, so that idling earns no credit. A waiting tenant's
    counter stands still while others' grow, so it is first in the end. Endless newcomers could still keep it out:
    therefore a tenant with nothing running, and a request that has waited for `_STARVED_S`, goes before all others.

    Source: Sheng et al. 2024, "Fairness in Serving Large Language Models" (VTC), arXiv:2401.00588.
    """

    def __init__(self) -> None:
        self._by_tenant: dict[str, list[Sequence]] = {}
        self._service: dict[str, float] = {}
        self._num_active: Counter[str] = Counter()
        self._entries: dict[str, int] = {}
        self._num_entries = 0
        self._num_running: Counter[str] = Counter()
        self._left_at: dict[str, float] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for sequences in self._by_tenant.values():
            yield from sequences

    @property
    def num_active_tenants(self) -> int:
        """Tenants with a waiting or running sequence."""
        return len(self._num_active)

    @property
    def num_running(self) -> Mapping[str, int]:
        """Running sequences by tenant."""
        return self._num_running

    def charge(self, tenant: str, num_tokens: float) -> None:
        """Count tokens that a tenant's sequences are given."""
        self._service[tenant] += num_tokens

    def enter(self, sequence: Sequence) -> None:
        """A new sequence waits; `leave` must follow when it is finished."""
        tenant = sequence.request.tenant
        if not self._num_active[tenant]:
            active = [self._service[name] for name, count in self._num_active.items() if count]
            self._service[tenant] = max(self._service.get(tenant, 0.0), min(active, default=0.0))
            self._num_entries += 1
            self._entries[tenant] = self._num_entries
        self._num_active[tenant] += 1
        self._insert(sequence)

    def admit(self, sequence: Sequence) -> None:
        """A waiting sequence runs now."""
        self._remove(sequence)
        self._num_running[sequence.request.tenant] += 1

    def take_back(self, sequence: Sequence) -> None:
        """A running sequence waits again, at the place that its arrival gives it."""
        self._num_running[sequence.request.tenant] -= 1
        self._insert(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence is finished, waiting or running."""
        tenant = sequence.request.tenant
        if not self._remove(sequence):
            self._num_running[tenant] -= 1
        self._num_active[tenant] -= 1
        if not self._num_active[tenant]:
            del self._num_active[tenant], self._num_running[tenant], self._entries[tenant]
            self._left_at[tenant] = time.monotonic()
            if len(self._service) > _MAX_IDLE_TENANTS + len(self._num_active):
                self._service = {name: self._service[name] for name in self._num_active}

    def first(self, skipped: Collection[Sequence] = ()) -> Sequence | None:
        """The next sequence to admit, leaving out `skipped`."""
        heads = [next((one for one in sequences if one not in skipped), None) for sequences in self._by_tenant.values()]
        return min((one for one in heads if one is not None), key=self.rank, default=None)

    def rank(self, sequence: Sequence) -> tuple[bool, float, int, tuple[float, int]]:
        """What prompts are ordered by, waiting and running ones alike: the tenant first, then its own order."""
        tenant = sequence.request.tenant
        is_starved = not self._num_running[tenant] and sequence.arrival_time_s < time.monotonic() - _STARVED_S
        standing = sequence.arrival_time_s if is_starved else self._service[tenant]
        return not is_starved, standing, self._entries[tenant], sequence.order

    def is_heavier_than_another(self, tenant: str) -> bool:
        """Whether another tenant, active or expected back, was served less."""
        now = time.monotonic()
        self._left_at = {name: left for name, left in self._left_at.items() if now - left < _RECENT_S}
        others = self._num_active.keys() | self._left_at.keys()
        return any(self._service.get(other, 0.0) < self._service[tenant] for other in others - {tenant})

    def is_lighter_than_another(self, tenant: str, num_more: int) -> bool:
        """Whether a tenant with `num_more` sequences more would still have fewer waiting than some other has.

        Safe to call from another thread.
        """
        sizes = {name: len(sequences) for name, sequences in list(self._by_tenant.items())}
        return sizes.get(tenant, 0) + num_more < max(sizes.values(), default=0)

    def heaviest(self, num_sequences: int) -> list[Sequence]:
        """So many sequences that never ran, each the last of the tenant that has the most of them left."""
        fresh = {name: [one for one in waiting if not one.has_run] for name, waiting in self._by_tenant.items()}
        return [max(fresh.values(), key=len).pop() for _ in range(num_sequences)]

    def _insert(self, sequence: Sequence) -> None:
        bisect.insort(self._by_tenant.setdefault(sequence.request.tenant, []), sequence, key=lambda one: one.order)
        self._length += 1

    def _remove(self, sequence: Sequence) -> bool:
        tenant = sequence.request.tenant
        sequences = self._by_tenant.get(tenant, [])
        if sequence not in sequences:
            return False
        sequences.remove(sequence)
        self._length -= 1
        if not sequences:
            del self._by_tenant[tenant]
        return True
