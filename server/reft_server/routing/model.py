"""A route, and the choice between its targets."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass

from reft_client.types import RouteDefinition, RouteTarget

DEFAULT_TASK = "default"
"""The route of this task also answers for tasks that have none."""


@dataclass(frozen=True)
class Route:
    """One revision of a route.

    Args:
        previous: the revision that was in force when this one was made; None = there was no route.
        created_at: Unix seconds.
    """

    tenant: str
    task: str
    revision: int
    previous: int | None
    created_at: float
    definition: RouteDefinition

    def choose(self, key: str | None) -> RouteTarget:
        """The target of a request: with a key always the same one, without one at random; each by its weight.

        Semantics: weighted rendezvous hashing. Every target draws u in (0, 1) from a hash of tenant, task, key and
        itself, and the largest `-weight / log(u)` wins. So a target is chosen with the probability weight / sum of
        weights, keys stay where they are over restarts, processes and revisions, and a new weight moves no key but
        to the targets that gain by it.

        Source: Schindelhauer & Schomaker 2005, "Weighted distributed hash tables" (the logarithmic method).
        """
        targets = [target for target in self.definition.targets if target.weight]
        if len(targets) == 1:
            return targets[0]
        seed = secrets.token_hex(16) if key is None else key
        return max(targets, key=lambda target: -target.weight / math.log(self._draw(seed, target)))

    def _draw(self, key: str, target: RouteTarget) -> float:
        refs = (ref.model_dump_json(exclude_defaults=True) for ref in target.intervention_refs())
        text = "\0".join((self.tenant, self.task, key, *refs))
        bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]) >> 4  # 52: with the half, what a float holds
        return (bits + 0.5) / (1 << 52)
