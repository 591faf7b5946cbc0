"""The sets of a folder (`--preload-dir`), imported into the store before the server listens."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.types import Lifespan

from reft_interventions.errors import InterventionError, ReftError
from reft_interventions.store import StoredVersion, check_name

from .registry import Registry
from .tenants.set_book import Origin

logger = logging.getLogger(__name__)


def preloading(inner: Lifespan[Any], registry: Registry, folder: Path) -> Lifespan[Any]:
    """`inner`, and an import of the sets in `folder` and in the folders right inside it before the server listens.

    A store or a folder that fails is logged and does not stop the start: base requests can be answered all the same.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[Any, None]:
        async with inner(app) as state:
            try:
                for source in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
                    for stored in await preload(registry, source):
                        logger.info("preload_imported reference=%s", stored.reference)
            except (ReftError, OSError) as error:
                logger.error("preload_failed folder=%s reason=%s", folder, error)
            yield state

    return lifespan


async def preload(registry: Registry, folder: Path) -> tuple[StoredVersion, ...]:
    """Import every `*.safetensors` in `folder` under its manifest's name; returns what was new.

    Content that the name has, or had before it was deleted, is left alone. A file that can't be served here is
    skipped with a warning.

    Raises:
        OSError: the folder can't be read.
        EngineDeadError: the engine can't try the sets now.
        StoreError: the disk or the index failed.
    """
    imported: list[StoredVersion] = []
    for path in await asyncio.to_thread(lambda: sorted(folder.glob("*.safetensors"))):
        try:
            stored = await _import(registry, path)
        except InterventionError as error:
            logger.warning("preload_skipped file=%s code=%s reason=%s", path.name, error.code, error.message)
            continue
        if stored is not None:
            imported.append(stored)
    return tuple(imported)


async def _import(registry: Registry, path: Path) -> StoredVersion | None:
    """Import one file unless its content is known; the file itself stays."""
    intervention_set, _ = await asyncio.to_thread(registry.loader.read_new, path)
    name = check_name(intervention_set.manifest.name)
    if registry.has_content(name, intervention_set.content_hash):
        return None
    upload = registry.new_upload_path()
    try:
        await asyncio.to_thread(shutil.copyfile, path, upload)
        stored, _ = await registry.add(upload, name, origin=Origin("preload"))
    finally:
        upload.unlink(missing_ok=True)
    return stored
