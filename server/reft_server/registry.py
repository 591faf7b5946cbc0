"""The interventions a server may apply: stored on disk, folded in memory, tried in the engine before being named."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from reft_interventions.errors import InterventionValueError, StoreError
from reft_interventions.file_format import FileLimits
from reft_interventions.folded import FoldedSet
from reft_interventions.store import InterventionStore, PutCondition, StoredVersion, check_name
from reft_interventions.subspaces import choose_dimensions
from reft_interventions.validation import BaseModelSpec

from .engine.device_pool import DevicePool, DevicePoolStats
from .engine.pool import InterventionPool, PoolStats
from .engine.types import Engine, SelfTestReport
from .errors import ContentDigestError
from .metrics import ResidentInterventions
from .set_loader import SetLoader
from .tenants import SHARED, TenantDirectory
from .tenants.namespaces import Namespaces
from .tenants.set_book import Origin
from .tenants.set_notes import SetNotes
from .used_names import UsedNames

logger = logging.getLogger(__name__)

_PURGE_INTERVAL_S = 600.0
_NUM_CONCURRENT_UPLOADS = 2
"""Uploads that are read at the same time; the others wait, so that memory stays bounded."""


@dataclass(frozen=True)
class ResolvedIntervention:
    """A name, resolved for one request: it runs `folded` whatever happens to the name meanwhile.

    `name` is what the tenant that asked calls it, `owner` is whose it is.
    `content_hash` is the stored file's; `folded` carries its own hash, of the folded weights, the scale and the rank
    dimensions that act; `subspaces` are these, None = all.
    """

    name: str
    owner: str
    version: int
    content_hash: str
    scale: float
    subspaces: tuple[int, ...] | None
    folded: FoldedSet


@dataclass(frozen=True)
class RegistryStats:
    """How many names and versions are stored, and what the pool holds."""

    num_names: int
    num_versions: int
    pool: PoolStats


class Registry:
    """Joins the store, the pool and the engine's self-test; used from one event loop.

    Args:
        base: the resident base model, which every set must fit.
        limits: for uploaded files, and but for their size, for stored ones.
        device_pool: of the engine's device; None where that is the host, which has the sets already.
        directory: says who may use whose sets; None = there is only the operator's namespace.

    Every method that takes a `tenant` acts in its name: it reads that tenant's namespace, then the shared one, and
    `<owner>/<name>` where it was granted; it writes that tenant's namespace only.
    """

    def __init__(
        self,
        store: InterventionStore,
        pool: InterventionPool,
        engine: Engine,
        base: BaseModelSpec,
        limits: FileLimits,
        device_pool: DevicePool | None = None,
        directory: TenantDirectory | None = None,
    ) -> None:
        self._store = store
        self._namespaces = Namespaces(store, directory)
        if directory is not None:
            directory.read_first(store.refresh)
        self._pool = pool
        self._device_pool = device_pool
        self._engine = engine
        self.loader = SetLoader(store, base, limits, device_pool)
        self._names = UsedNames()
        self._upload_slots = asyncio.Semaphore(_NUM_CONCURRENT_UPLOADS)

    async def resolve(
        self,
        name: str,
        version: int | str | None = None,
        *,
        scale: float = 1.0,
        subspaces: Sequence[int | str] | None = None,
        tenant: str = SHARED,
    ) -> ResolvedIntervention:
        """Find a version and load it, if it is not in the pool yet.

        Args:
            name: as `tenant` calls it.
            version: None = the newest; a number; or `sha256:` and at least 12 hex digits of the content hash.
            scale: multiplies every delta of the set.
            subspaces: rank dimensions, and names that the manifest gives to groups of them; None = all.

        Raises:
            InvalidInterventionNameError: the name or the version breaks the rules.
            InterventionNotFoundError: there is none.
            InterventionConflictError: a hash prefix fits several contents.
            InterventionValueError: `scale` is not finite.
            InterventionSubspaceError: the set does not have these rank dimensions, or none at all.
            InterventionBaseMismatchError, InterventionShapeError: stored by a server with another base model.
            StoreError: the stored file is lost or damaged.
        """
        if not math.isfinite(scale):
            raise InterventionValueError(f"the scale must be finite, got {scale}", param="scale")
        stored = self._namespaces.resolve(name, version, tenant)
        dimensions = None if subspaces is None else choose_dimensions(stored.manifest, subspaces)
        folded = await self._load(stored, scale, dimensions)
        return ResolvedIntervention(
            name=self.name_of(stored, tenant),
            owner=stored.tenant,
            version=stored.version,
            content_hash=stored.content_hash,
            scale=scale,
            subspaces=dimensions,
            folded=folded,
        )

    async def place(self, sets: Sequence[FoldedSet]) -> tuple[FoldedSet, ...]:
        """The resolved sets of one request where the engine runs them; holding them keeps them there.

        Raises:
            InvalidRequestError: together they are larger than the device's budget.
            EngineOverloadedError: running requests used the whole budget for too long.
        """
        return tuple(sets) if self._device_pool is None else await self._device_pool.place(sets)

    async def add(
        self,
        path: Path,
        name: str,
        *,
        tenant: str = SHARED,
        condition: PutCondition | None = None,
        origin: Origin | None = None,
        content_hash: str | None = None,
    ) -> tuple[StoredVersion, SelfTestReport]:
        """Check the file at `path`, try it in the engine, and store it as the next version of the tenant's `name`.

        Nothing is stored when a step fails. `path`, from `new_upload_path`, is gone afterwards in every case.

        Args:
            condition: what the name must hold.
            origin: where the file comes from; None = an upload of which nothing more is known.
            content_hash: what the client says it is; None = it does not say.

        Raises:
            ContentDigestError: it is another.
            InterventionPreconditionError: the name does not hold what `condition` says.
            InvalidInterventionNameError: the name breaks the rules.
            InterventionQuotaError: the tenant has as much as it may store.
            InterventionError: the file is refused; see `file_format.load` and `validate_for_base`.
            InterventionSelfTestError: the edit does nothing, or touches rows that it must not touch.
            EngineDeadError: the engine can't try it now.
            StoreError: the disk or the index failed.
        """
        try:
            check_name(name)
            async with self._upload_slots:
                intervention_set, folded = await asyncio.to_thread(self.loader.read_new, path)
                if content_hash not in (None, intervention_set.content_hash):
                    raise ContentDigestError(
                        f"The file's content hash is {intervention_set.content_hash}", param="content_hash"
                    )
                report = await self._engine.self_test(folded)
                stored = await asyncio.to_thread(
                    self._namespaces.put, path, name, intervention_set, tenant, condition, origin or Origin()
                )
        finally:
            path.unlink(missing_ok=True)
        self._pool.add(stored.content_hash, folded)
        with self._names.using(stored):
            pass
        logger.info("intervention_stored version=%d content_hash=%s", stored.version, stored.content_hash)
        return stored, report

    async def test(self, stored: StoredVersion) -> SelfTestReport:
        """Try a stored version in the engine, as `add` did.

        Raises:
            InterventionSelfTestError: the edit does nothing, or touches rows that it must not touch.
            InterventionBaseMismatchError, InterventionShapeError: stored by a server with another base model.
            EngineDeadError: the engine can't try it now.
            StoreError: the stored file is lost or damaged.
        """
        return await self._engine.self_test(await self._load(stored, 1.0, None))

    def list(self, tenant: str = SHARED) -> tuple[StoredVersion, ...]:
        """The newest living version of every name that a tenant may use, its own first."""
        return self._namespaces.list(tenant)

    def get(self, name: str, version: int | str | None = None, *, tenant: str = SHARED) -> StoredVersion:
        """What is stored under a name; nothing is loaded. Raises as `InterventionStore.resolve` does."""
        return self._namespaces.resolve(name, version, tenant)

    def versions(self, name: str, *, tenant: str = SHARED) -> tuple[StoredVersion, ...]:
        """The living versions of a name, oldest first. Raises as `InterventionStore.versions` does."""
        return self._namespaces.versions(name, tenant)

    def lives(self, owner: str, name: str, version: int) -> bool:
        """Whether a version of an owner's set can be found."""
        return self._namespaces.lives(owner, name, version)

    def name_of(self, stored: StoredVersion, tenant: str = SHARED) -> str:
        """What a tenant that may use a set calls it."""
        return self._namespaces.name_of(stored, tenant)

    async def delete(
        self, name: str, version: int | str | None = None, *, tenant: str = SHARED, is_final: bool = False
    ) -> tuple[StoredVersion, ...]:
        """Delete one version, or all of a name; requests in flight finish with what they resolved.

        With a name's last version its grants end. What is deleted can be restored for a time.

        Args:
            is_final: nothing can be restored, nor what was deleted before.

        Raises:
            InterventionConflictError: an alias names that version.
            InterventionNotFoundError: there is nothing to delete.
            StoreError: the disk or the index failed.
        """
        delete = self._namespaces.purge if is_final else self._namespaces.delete
        deleted = await asyncio.to_thread(delete, name, version, tenant)
        for stored in deleted:
            # Another name may share the content: then its next use loads it again.
            self._pool.discard(stored.content_hash)
            logger.info("intervention_deleted version=%d content_hash=%s", stored.version, stored.content_hash)
        return deleted

    async def forget(self, tenant: str) -> None:
        """Purge everything in a tenant's namespace; requests in flight finish with what they resolved.

        Raises:
            StoreError: the disk or the index failed; what is left goes when it is called again.
        """
        for stored in await asyncio.to_thread(self._namespaces.forget, tenant):
            self._pool.discard(stored.content_hash)

    async def restore(
        self, name: str, version: int | str | None = None, *, tenant: str = SHARED
    ) -> tuple[StoredVersion, ...]:
        """Undo the latest delete of a name, or restore one version. Raises as `InterventionStore.restore` does."""
        restored = await asyncio.to_thread(self._namespaces.restore, name, version, tenant)
        for stored in restored:
            logger.info("intervention_restored version=%d content_hash=%s", stored.version, stored.content_hash)
        return restored

    def deleted(self, name: str | None = None, *, tenant: str = SHARED) -> tuple[StoredVersion, ...]:
        """What `restore` can bring back, of one name or of all, oldest deletion first."""
        return self._namespaces.deleted(name, tenant)

    @property
    def retention_s(self) -> float:
        """How long a deleted version can be restored."""
        return self._store.retention_s

    @retention_s.setter
    def retention_s(self, value: float) -> None:
        self._store.retention_s = value

    def notes(self, stored: StoredVersion) -> SetNotes:
        """Description, labels and aliases of a set."""
        return self._namespaces.notes(stored)

    async def purge_expired(self) -> None:
        """End, for ever and again, the deleted versions whose retention time is over."""
        while True:
            try:
                purged = await asyncio.to_thread(self._namespaces.purge_expired)
                if purged:
                    logger.info("interventions_purged num=%d", len(purged))
            except StoreError as error:
                logger.error("interventions_not_purged reason=%s", error.message)
            await asyncio.sleep(_PURGE_INTERVAL_S)

    def is_loaded(self, stored: StoredVersion) -> bool:
        """Whether the folded weights of a version are in memory."""
        return stored.content_hash in self._pool

    def open(self, stored: StoredVersion) -> BinaryIO:
        """Open the file of a version for a download; a later delete does not disturb it.

        Raises:
            InterventionNotFoundError: it was deleted since it was resolved.
            StoreError: the file is lost.
        """
        return self._store.namespace(stored.tenant).open(stored)

    def has_content(self, name: str, content_hash: str) -> bool:
        """Whether the operator's `name` has a version with this content, or had one before it was deleted."""
        return self._store.has_content(name, content_hash)

    def new_upload_path(self) -> Path:
        """Where to write an upload before `add`; not created yet."""
        return self._store.new_temp_path()

    def stats(self) -> RegistryStats:
        """Counts for the metrics."""
        num_names, num_versions = self._store.counts()
        return RegistryStats(num_names, num_versions, self._pool.stats())

    def device_stats(self) -> DevicePoolStats:
        """Of the copies on the engine's device; zeros where that is the host."""
        return DevicePoolStats() if self._device_pool is None else self._device_pool.stats()

    def resident(self) -> ResidentInterventions:
        """The names of the sets in memory, and of those that requests wait for."""
        return self._names.resident(self._pool)

    async def close(self) -> None:
        """Wait for the loads that run, and close the store."""
        await self._pool.close()
        self._store.close()

    async def _load(self, stored: StoredVersion, scale: float, dimensions: tuple[int, ...] | None) -> FoldedSet:
        with self._names.using(stored):
            return await self._pool.get(stored.content_hash, lambda: self.loader.read_stored(stored), scale, dimensions)
