"""Which values of a metric's label are named, when there may be thousands: those that are seen most."""

from __future__ import annotations

from collections import Counter

OTHER_LABEL = "other"


class TopLabels:
    """Names at most `capacity` values at a time; the others share one label.

    The first values are named as they come. Every `rerank_every` observations the most frequent of late take the
    places, so that what was busy once does not hold a place for ever; counts halve, and so older ones fade. Memory is
    bounded by twice `rerank_every`, and no more than `capacity` values change at a time.

    Args:
        capacity: distinct values with a label of their own.
        rerank_every: observations between two rankings.
    """

    def __init__(self, capacity: int, rerank_every: int = 4096) -> None:
        self.capacity = capacity
        self.named: set[str] = set()
        self._rerank_every = rerank_every
        self._counts: Counter[str] = Counter()
        self._num_observed = 0

    def observe(self, value: str) -> str:
        """Count a value and return its label."""
        self._counts[value] += 1
        self._num_observed += 1
        if self._num_observed % self._rerank_every == 0:
            self._rerank()
        if len(self.named) < self.capacity:
            self.named.add(value)
        return value if value in self.named else OTHER_LABEL

    def _rerank(self) -> None:
        # among equals, those that have a place keep it
        ranked = sorted(self._counts, key=lambda value: (-self._counts[value], value not in self.named))
        self.named = set(ranked[: self.capacity])
        self._counts = Counter({value: count // 2 for value, count in self._counts.items() if count > 1})
