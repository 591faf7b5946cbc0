"""The waiting requests, tenant by tenant: who was served least comes first."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Collection, Iterator

from .sequence import Sequence

_MAX_IDLE_TENANTS = 1024


class WaitingQueue:
    """Waiting sequences, ordered by their tenants' service, then by their own priority and arrival.

    A tenant's *service* is a virtual counter of the tokens that it was given. A tenant that comes back after a pause
    starts no lower than the least served active one, so that idling earns no credit. A waiting tenant's
    counter stands still while others' grow: it is first in the end, so nobody starves.

    Source: Sheng et al. 2024, "Fairness in Serving Large Language Models" (VTC), arXiv:2401.00588.
    """

    def __init__(self) -> None:
        self._by_tenant: dict[str, list[Sequence]] = {}
        self._service: dict[str, float] = {}
        self._num_active: Counter[str] = Counter()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for sequences in self._by_tenant.values():
            yield from sequences

    @property
    def active_tenants(self) -> Collection[str]:
        """Tenants with a waiting or running sequence."""
        return self._num_active.keys()

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

    def service(self, tenant: str) -> float:
        """Virtual tokens that a tenant was given."""
        return self._service.get(tenant, 0.0)

    def charge(self, tenant: str, num_tokens: float) -> None:
        """Count tokens that a tenant's sequences are given."""
        self._service[tenant] = self.service(tenant) + num_tokens

    def enter(self, sequence: Sequence) -> None:
        """A new sequence joins; `leave` must follow when it is finished."""
        tenant = sequence.request.tenant
        if not self._num_active[tenant]:
            others = [self._service[name] for name, count in self._num_active.items() if count]
            self._service[tenant] = max(self.service(tenant), min(others, default=0.0))
        self._num_active[tenant] += 1
        self.push(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence is finished, wherever it was."""
        self.discard(sequence)
        tenant = sequence.request.tenant
        self._num_active[tenant] -= 1
        if not self._num_active[tenant]:
            del self._num_active[tenant]
            if len(self._service) > _MAX_IDLE_TENANTS + len(self._num_active):
                self._service = {name: self._service[name] for name in self._num_active}

    def push(self, sequence: Sequence) -> None:
        """Wait, again if need be: a preempted sequence keeps the place that its arrival gives it."""
        bisect.insort(self._by_tenant.setdefault(sequence.request.tenant, []), sequence, key=lambda one: one.order)
        self._length += 1

    def discard(self, sequence: Sequence) -> bool:
        """Take a sequence out; False when it did not wait."""
        tenant = sequence.request.tenant
        sequences = self._by_tenant.get(tenant, [])
        if sequence not in sequences:
            return False
        sequences.remove(sequence)
        self._length -= 1
        if not sequences:
            del self._by_tenant[tenant]
        return True

    def first(self, skipped: Collection[Sequence] = ()) -> Sequence | None:
        """The next sequence to admit, leaving out `skipped`."""
        heads = [next((one for one in sequences if one not in skipped), None) for sequences in self._by_tenant.values()]
        return min((one for one in heads if one is not None), key=self.rank, default=None)

    def rank(self, sequence: Sequence) -> tuple[float, tuple[float, int]]:
        """What sequences are ordered by, across tenants."""
        return self.service(sequence.request.tenant), sequence.order
