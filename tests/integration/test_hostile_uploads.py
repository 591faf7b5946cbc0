"""Hostile and broken uploads: a named error each, and the store stays byte for byte what it was."""

from __future__ import annotations

import asyncio
import pickle
import tracemalloc
from pathlib import Path

import pytest

from reft_interventions import InterventionSet, dumps
from reft_interventions.errors import (
    InterventionFileError,
    InterventionFileTooLargeError,
    InterventionSelfTestError,
    InvalidInterventionNameError,
    ReftError,
)
from reft_interventions.store import InterventionStore
from reft_server.engine.pool import InterventionPool
from reft_server.registry import Registry
from tests.hostile_files import GOOD, HOSTILE, LIMITS, Exploit
from tests.intervention_sets import BASE, make_set
from tests.self_test_engine import SelfTestEngine


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file by its path; SQLite's shared memory is left out, where mere readers leave marks."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and not path.name.endswith("-shm")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def attack(root: Path, data: bytes, name: str, *, engine: SelfTestEngine) -> ReftError:
    """Upload `data` to a store that holds a good set; check that nothing changed, and return the error."""
    original: InterventionSet = make_set(7)

    async def scenario() -> ReftError:
        registry = Registry(InterventionStore(root), InterventionPool(1 << 20), engine, BASE, LIMITS)
        try:
            path = registry.new_upload_path()
            path.write_bytes(dumps(original))
            failure, engine.failure = engine.failure, None
            await registry.add(path, "victim")
            engine.failure = failure
            before, before_resolved = snapshot(root.parent), await registry.resolve("victim")
            upload = registry.new_upload_path()
            upload.write_bytes(data)
            with pytest.raises(ReftError) as caught:
                await registry.add(upload, name)
            assert snapshot(root.parent) == before
            assert [stored.reference for stored in registry.list()] == ["victim@1"]
            assert (await registry.resolve("victim")).folded is before_resolved.folded
            assert registry.stats().pool.num_sets == 1
            return caught.value
        finally:
            await registry.close()

    return asyncio.run(scenario())


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("name", ["newcomer", "victim"])
def test_hostile_upload_is_a_named_error_and_stores_nothing(tmp_path: Path, case: str, name: str) -> None:
    make_data, expected = HOSTILE[case]
    engine = SelfTestEngine()
    error = attack(tmp_path / "store", make_data(), name, engine=engine)
    assert type(error) is expected
    assert error.message
    assert len(error.message) < 2002
    assert error.message.isprintable()
    assert str(tmp_path) not in error.message, "the error tells where the store lies"
    assert len(engine.tried) == 1, "the engine tried a set that should have been refused before"


@pytest.mark.parametrize("name", ["../escape", "a/b", "/etc/cron.d/x", "..", "", "con", "a\x00b", "A", "victim@2"])
def test_path_tricks_in_the_name_are_refused(tmp_path: Path, name: str) -> None:
    error = attack(tmp_path / "store", GOOD, name, engine=SelfTestEngine())
    assert type(error) is InvalidInterventionNameError


@pytest.mark.parametrize("name", ["newcomer", "victim"])
def test_set_that_fails_its_self_test_is_refused(tmp_path: Path, name: str) -> None:
    engine = SelfTestEngine(InterventionSelfTestError("the edit changes nothing"))
    error = attack(tmp_path / "store", GOOD, name, engine=engine)
    assert type(error) is InterventionSelfTestError
    assert len(engine.tried) == 2


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    import builtins

    attack(tmp_path / "store", pickle.dumps(Exploit()), "newcomer", engine=SelfTestEngine())
    assert not hasattr(builtins, "reft_was_exploited")


@pytest.mark.parametrize("case", ["header_claims_1_gb", "header_claims_everything", "zip_bomb", "gzip_bomb"])
def test_a_lying_file_costs_little_memory(tmp_path: Path, case: str) -> None:
    data = HOSTILE[case][0]()
    attack(tmp_path / "warm", data, "newcomer", engine=SelfTestEngine())
    tracemalloc.start()
    try:
        attack(tmp_path / "store", data, "newcomer", engine=SelfTestEngine())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_every_prefix_of_a_good_file_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        registry = Registry(
            InterventionStore(tmp_path / "store"), InterventionPool(1 << 20), SelfTestEngine(), BASE, LIMITS
        )
        try:
            for length in range(0, len(GOOD), 41):
                upload = registry.new_upload_path()
                upload.write_bytes(GOOD[:length])
                with pytest.raises((InterventionFileError, InterventionFileTooLargeError)):
                    await registry.add(upload, "newcomer")
            assert registry.list() == ()
        finally:
            await registry.close()

    asyncio.run(scenario())
