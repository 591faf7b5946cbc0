"""The registry: what a request resolves stays what it is, and nothing unchecked gets a name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from reft_interventions import FileLimits, InterventionSet, save
from reft_interventions.errors import (
    InterventionBaseMismatchError,
    InterventionFileTooLargeError,
    InterventionNotFoundError,
    InterventionSelfTestError,
    InterventionValueError,
    InvalidInterventionNameError,
    StoreError,
)
from reft_interventions.store import InterventionStore, StoredVersion
from reft_server.engine.device_pool import DevicePool
from reft_server.engine.pool import InterventionPool
from reft_server.errors import EngineDeadError, ReftError
from reft_server.preload import preload
from reft_server.registry import Registry
from tests.intervention_sets import BASE, make_set
from tests.self_test_engine import SelfTestEngine

Scenario = Callable[[Registry, SelfTestEngine], Awaitable[None]]


def run(root: Path, scenario: Scenario, *, failure: ReftError | None = None, budget_bytes: int = 1 << 20) -> None:
    async def with_registry() -> None:
        engine = SelfTestEngine(failure)
        store, pool = InterventionStore(root), InterventionPool(budget_bytes)
        registry = Registry(store, pool, engine, BASE, FileLimits())
        try:
            await scenario(registry, engine)
        finally:
            await registry.close()

    asyncio.run(with_registry())


async def add(registry: Registry, intervention_set: InterventionSet, name: str = "haiku") -> StoredVersion:
    path = registry.new_upload_path()
    save(intervention_set, path)
    stored, report = await registry.add(path, name)
    assert not path.exists()
    assert report.sites
    return stored


def test_add_tests_stores_and_seeds_the_pool(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        original = make_set(1)
        stored = await add(registry, original)
        assert stored.reference == "haiku@1"
        assert [folded.content_hash for folded in engine.tried] == [original.fold().content_hash]
        assert registry.is_loaded(stored)
        resolved = await registry.resolve("haiku")
        assert (resolved.name, resolved.version, resolved.content_hash) == ("haiku", 1, original.content_hash)
        assert resolved.folded is engine.tried[0]
        assert registry.stats().pool.num_misses == 0

    run(tmp_path, scenario)


def test_resolve_loads_lazily_after_a_restart(tmp_path: Path) -> None:
    async def first(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))

    async def second(registry: Registry, engine: SelfTestEngine) -> None:
        assert not registry.is_loaded(registry.get("haiku"))
        resolved = await asyncio.gather(*(registry.resolve("haiku") for _ in range(10)))
        assert {id(one.folded) for one in resolved} == {id(resolved[0].folded)}
        assert resolved[0].folded.content_hash == make_set(1).fold().content_hash
        assert registry.is_loaded(registry.get("haiku"))
        assert engine.tried == []

    run(tmp_path, first)
    run(tmp_path, second)


def test_smaller_upload_limit_leaves_what_is_stored_alone(tmp_path: Path) -> None:
    async def first(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))

    async def second(registry: Registry, engine: SelfTestEngine) -> None:
        registry.loader.limits = FileLimits(max_file_bytes=100)
        assert (await registry.resolve("haiku")).version == 1
        with pytest.raises(InterventionFileTooLargeError):
            await add(registry, make_set(2))

    run(tmp_path, first)
    run(tmp_path, second)


def test_upload_under_the_same_name_leaves_what_was_resolved_alone(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))
        in_flight = await registry.resolve("haiku")
        rows = torch.randn(3, BASE.hidden_size)
        before = in_flight.folded.interventions[0].edit.delta(rows)
        assert (await add(registry, make_set(2))).version == 2
        now = await registry.resolve("haiku")
        assert now.version == 2
        assert now.folded.content_hash != in_flight.folded.content_hash
        assert torch.equal(in_flight.folded.interventions[0].edit.delta(rows), before)
        assert (await registry.resolve("haiku", 1)).folded is in_flight.folded
        assert (await registry.resolve("haiku", in_flight.content_hash)).version == 1

    run(tmp_path, scenario)


def test_delete_ends_the_name_and_not_the_requests(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))
        in_flight = await registry.resolve("haiku")
        deleted = await registry.delete("haiku")
        assert [stored.reference for stored in deleted] == ["haiku@1"]
        assert not registry.is_loaded(deleted[0])
        assert torch.isfinite(in_flight.folded.interventions[0].edit.delta(torch.randn(1, BASE.hidden_size))).all()
        for version in (None, 1, in_flight.content_hash):
            with pytest.raises(InterventionNotFoundError):
                await registry.resolve("haiku", version)
        assert registry.list() == ()

    run(tmp_path, scenario)


def test_deleted_and_uploaded_again_is_a_new_version_with_new_weights(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))
        await registry.delete("haiku")
        assert (await add(registry, make_set(2))).version == 2
        resolved = await registry.resolve("haiku")
        assert resolved.folded.content_hash == make_set(2).fold().content_hash

    run(tmp_path, scenario)


def test_two_names_with_one_content_survive_the_delete_of_either(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1), "a")
        await add(registry, make_set(1), "b")
        await registry.delete("a")
        assert (await registry.resolve("b")).folded.content_hash == make_set(1).fold().content_hash

    run(tmp_path, scenario)


@pytest.mark.parametrize("scale", [2.0, -1.0, 0.0])
def test_resolve_scales_the_deltas(tmp_path: Path, scale: float) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))
        rows = torch.randn(3, BASE.hidden_size)
        plain, scaled = await registry.resolve("haiku"), await registry.resolve("haiku", scale=scale)
        expected = plain.folded.interventions[0].edit.delta(rows) * scale
        torch.testing.assert_close(scaled.folded.interventions[0].edit.delta(rows), expected)
        assert scaled.scale == scale
        assert scaled.content_hash == plain.content_hash
        assert (await registry.resolve("haiku", scale=scale)).folded is scaled.folded

    run(tmp_path, scenario)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), float("-inf")])
def test_resolve_refuses_a_scale_that_is_not_finite(tmp_path: Path, scale: float) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))
        with pytest.raises(InterventionValueError) as caught:
            await registry.resolve("haiku", scale=scale)
        assert caught.value.param == "scale"

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    "failure",
    [InterventionSelfTestError("changes nothing"), EngineDeadError("stopped")],
    ids=["self_test", "engine_dead"],
)
def test_add_stores_nothing_when_the_engine_refuses(tmp_path: Path, failure: ReftError) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        path = registry.new_upload_path()
        save(make_set(1), path)
        with pytest.raises(type(failure)):
            await registry.add(path, "haiku")
        assert not path.exists()
        assert registry.list() == ()
        assert registry.stats().pool.num_sets == 0
        with pytest.raises(InterventionNotFoundError):
            await registry.resolve("haiku")

    run(tmp_path, scenario, failure=failure)


def test_add_checks_the_name_before_it_reads_the_file(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        path = registry.new_upload_path()
        path.write_bytes(b"not even a file")
        with pytest.raises(InvalidInterventionNameError):
            await registry.add(path, "../escape")
        assert not path.exists()

    run(tmp_path, scenario)


def test_cancelled_add_removes_the_upload(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        started = asyncio.Event()

        async def hang(folded: object) -> None:
            started.set()
            await asyncio.Event().wait()

        engine.self_test = hang  # type: ignore[assignment, method-assign]
        path = registry.new_upload_path()
        save(make_set(1), path)
        upload = asyncio.create_task(registry.add(path, "haiku"))
        await started.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        assert not path.exists()
        assert registry.list() == ()

    run(tmp_path, scenario)


def test_concurrent_adds_under_one_name_all_get_a_version(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        stored = await asyncio.gather(*(add(registry, make_set(seed)) for seed in range(10)))
        assert sorted(one.version for one in stored) == list(range(1, 11))
        for one in stored:
            resolved = await registry.resolve("haiku", one.version)
            assert resolved.content_hash == one.content_hash

    run(tmp_path, scenario)


def test_resolve_of_a_rotten_file_is_an_error_until_it_is_uploaded_again(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        stored = await add(registry, make_set(1))
        blob = next(tmp_path.glob("blobs/sha256/*/*"))
        data = bytearray(blob.read_bytes())
        data[-1] ^= 0x40
        blob.write_bytes(data)
        with pytest.raises(StoreError, match="haiku@1"):
            await registry.resolve("haiku")
        assert await add(registry, make_set(1)) == stored
        assert (await registry.resolve("haiku")).folded.content_hash == make_set(1).fold().content_hash

    run(tmp_path, scenario, budget_bytes=0)  # nothing stays in memory: each resolve reads the file


def test_resolve_refuses_a_set_that_a_server_with_another_base_stored(tmp_path: Path) -> None:
    other = replace(BASE, fingerprint="other-weights")
    source = tmp_path / "other.safetensors"
    save(make_set(1, base=other), source)
    with InterventionStore(tmp_path / "store") as store:
        store.put(source, "haiku")

    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        with pytest.raises(InterventionBaseMismatchError):
            await registry.resolve("haiku")
        assert registry.stats().pool.num_sets == 0

    run(tmp_path / "store", scenario)


def test_open_gives_the_file_that_was_uploaded(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        stored = await add(registry, make_set(1))
        copy = tmp_path / "copy.safetensors"
        with registry.open(stored) as file:
            copy.write_bytes(file.read())
        assert save(make_set(1), tmp_path / "original.safetensors") == stored.content_hash
        assert copy.read_bytes() == (tmp_path / "original.safetensors").read_bytes()
        assert copy.stat().st_size == stored.size_bytes

    run(tmp_path / "store", scenario)


def test_preload_imports_new_files_once_and_respects_deletes(tmp_path: Path) -> None:
    bundled = tmp_path / "bundled"
    bundled.mkdir()
    for seed, name in enumerate(["alpha", "beta"]):
        save(make_set(seed, name=name), bundled / f"{seed}.safetensors")

    async def first(registry: Registry, engine: SelfTestEngine) -> None:
        imported = await preload(registry, bundled)
        assert [stored.reference for stored in imported] == ["alpha@1", "beta@1"]
        assert len(engine.tried) == 2
        assert await preload(registry, bundled) == ()
        await add(registry, make_set(9), "alpha")
        await registry.delete("beta")

    async def second(registry: Registry, engine: SelfTestEngine) -> None:
        assert await preload(registry, bundled) == ()
        assert engine.tried == []
        assert [stored.reference for stored in registry.list()] == ["alpha@2"]

    run(tmp_path / "store", first)
    run(tmp_path / "store", second)
    assert sorted(path.name for path in bundled.iterdir()) == ["0.safetensors", "1.safetensors"]
    assert list((tmp_path / "store" / "tmp").iterdir()) == []


def test_preload_skips_what_can_not_be_served_with_one_warning_each(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(make_set(1, name="good"), tmp_path / "good.safetensors")
    save(make_set(2, name="other", base=replace(BASE, fingerprint="else")), tmp_path / "mismatch.safetensors")
    save(make_set(3, name="Not A Name"), tmp_path / "unnamed.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "readme.txt").write_text("not a set")

    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        with caplog.at_level(logging.WARNING):
            imported = await preload(registry, tmp_path)
        assert [stored.reference for stored in imported] == ["good@1"]

    run(tmp_path / "store", scenario)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 3
    for file, code in [
        ("mismatch", "intervention_base_mismatch"),
        ("unnamed", "invalid_intervention_name"),
        ("broken", "invalid_intervention_file"),
    ]:
        assert sum(file in message and code in message for message in messages) == 1


def test_place_gives_the_engine_of_a_device_copies_and_the_engine_of_the_host_the_sets_themselves(
    tmp_path: Path,
) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        await add(registry, make_set(1))
        resolved = await registry.resolve("haiku")
        assert await registry.place([resolved.folded]) == (resolved.folded,)
        device_pool = DevicePool(torch.device("meta"), 1 << 20, max_wait_s=1.0)
        store, pool = InterventionStore(tmp_path), InterventionPool(1 << 20)
        on_device = Registry(store, pool, engine, BASE, FileLimits(), device_pool)
        [placed] = await on_device.place([resolved.folded])
        assert placed.content_hash == resolved.folded.content_hash
        assert device_pool.stats().num_pinned == 1
        await on_device.close()

    run(tmp_path, scenario)


def test_stats_count_names_versions_and_the_pool(tmp_path: Path) -> None:
    async def scenario(registry: Registry, engine: SelfTestEngine) -> None:
        for seed in range(3):
            await add(registry, make_set(seed), "a")
        await add(registry, make_set(3), "b")
        await registry.delete("a", 1)
        stats = registry.stats()
        assert (stats.num_names, stats.num_versions, stats.pool.num_sets) == (2, 3, 3)
        assert [stored.version for stored in registry.versions("a")] == [2, 3]

    run(tmp_path, scenario)
