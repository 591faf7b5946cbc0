"""From a file to a set that the engine can run: read within limits, checked against the base model, folded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from reft_interventions.file_format import FileLimits, load
from reft_interventions.folded import FoldedSet
from reft_interventions.intervention_set import InterventionSet
from reft_interventions.store import InterventionStore, StoredVersion
from reft_interventions.validation import BaseModelSpec, check_base, validate_for_base

from .engine.device_pool import DevicePool


@dataclass
class SetLoader:
    """Reads sets; every method blocks, and may be called from any thread.

    Args:
        base: the resident base model, which every set must fit.
        limits: for new files, and but for their size, for stored ones.
        device_pool: where folded sets are made ready for the engine's device; None where that is the host.
    """

    store: InterventionStore
    base: BaseModelSpec
    limits: FileLimits
    device_pool: DevicePool | None = None

    def read_new(self, path: Path) -> tuple[InterventionSet, FoldedSet]:
        """Read and check a file that nobody has checked yet.

        Raises:
            InterventionError: it is refused; see `file_format.load` and `validate_for_base`.
        """
        intervention_set = load(path, self.limits)
        validate_for_base(intervention_set, self.base)
        return intervention_set, self._fold(intervention_set)

    def read_stored(self, stored: StoredVersion) -> FoldedSet:
        """Read a version; its values were checked before it was stored, and its hash shows that they are the same.

        Raises:
            InterventionBaseMismatchError, InterventionShapeError: stored by a server with another base model.
            StoreError: the file is lost or damaged.
        """
        # The limit on files is for new ones: it may have been larger when this one came.
        limits = replace(self.limits, max_file_bytes=max(self.limits.max_file_bytes, stored.size_bytes))
        intervention_set = self.store.namespace(stored.tenant).load(stored, limits)
        check_base(intervention_set, self.base)
        return self._fold(intervention_set)

    def _fold(self, intervention_set: InterventionSet) -> FoldedSet:
        folded = intervention_set.fold()
        return folded if self.device_pool is None else self.device_pool.stage(folded)
