"""How much a namespace may hold."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InterventionQuotaError


@dataclass(frozen=True)
class StoreQuota:
    """What a namespace may hold; None = no limit.

    Args:
        max_names: names with a living version.
        max_bytes: living versions together, each counted in full. Deleted ones that could be restored give way to them.
    """

    max_names: int | None = None
    max_bytes: int | None = None

    def check(self, num_names: int, num_bytes: int) -> None:
        """Raises `InterventionQuotaError` where there would be more."""
        if self.max_names is not None and num_names > self.max_names:
            raise InterventionQuotaError(f"at most {self.max_names} sets may be stored; delete some", param="name")
        if self.max_bytes is not None and num_bytes > self.max_bytes:
            raise InterventionQuotaError(
                f"all sets together may have {self.max_bytes} bytes, and would have {num_bytes}; delete some",
                param="file",
            )
