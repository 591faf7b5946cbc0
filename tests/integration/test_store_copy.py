"""A whole store goes from its folder to PostgreSQL and a bucket, and back, and nothing of it is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from reft_client.types import RouteDefinition
from reft_interventions import save
from reft_interventions.errors import StoreError
from reft_interventions.store import InterventionStore, StoredVersion
from reft_interventions.store.blobs import DiskBlobs
from reft_server import cli
from reft_server.config import Settings
from reft_server.routing.book import RouteBook
from reft_server.storage import open_store
from reft_server.storage.copying import copy_everything
from reft_server.tenants import TenantDirectory, TenantLimits
from reft_server.tenants.audit import AuditQuery
from reft_server.tenants.set_book import Origin, SetBook
from reft_server.tenants.snapshot import Snapshot
from tests.intervention_sets import make_set

Place = tuple[InterventionStore, TenantDirectory]
OpenPlace = Callable[..., Place]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[OpenPlace]:
    """`place("new", database_url=...)`: a store and its directory, as a server has them."""
    with ExitStack() as stack:

        def open_place(folder: str, **settings: Any) -> Place:
            values = Settings(store_dir=tmp_path / folder, deleted_retention_s=3600.0, **settings)
            directory = TenantDirectory.of_store(values.store_dir, None, values.database_url_text)
            stack.enter_context(closing(directory)).open()
            return stack.enter_context(open_store(values)), directory

        yield open_place


def put(store: InterventionStore, seed: int, name: str, tenant: str) -> StoredVersion:
    path = store.new_temp_path()
    save(make_set(seed), path)
    return store.namespace(tenant).put(path, name)


def fill(place: Place) -> None:
    """Versions of every kind in two namespaces, and a row in every table that a server writes by itself."""
    store, directory = place
    directory.create_tenant("acme", TenantLimits(max_sets=7))
    directory.create_key("acme", ("infer",), description="the app")
    for seed, name, tenant in ((1, "haiku", "acme"), (2, "haiku", "acme"), (3, "haiku", "acme"), (1, "pirate", "")):
        put(store, seed, name, tenant)
    store.namespace("acme").delete("haiku", 1)
    store.namespace("acme").delete("haiku", 2, is_final=True)
    book = SetBook(directory)
    for version in (1, 3):
        book.move_alias("acme", "haiku", "prod", version)
    book.describe("acme", "haiku", {"description": "verses", "labels": {"kind": "form"}})
    book.set_card("acme", "haiku", "# Haiku")
    book.note_origin(store.namespace("acme").resolve("haiku"), Origin("fine_tuning", {"job": "1"}))
    directory.grant("acme", "haiku", "other")
    RouteBook(directory).put("acme", "poems", RouteDefinition.model_validate({"targets": [{"intervention": "haiku"}]}))


def state(place: Place) -> tuple[dict[tuple[str, str, int], StoredVersion], Snapshot, object, object]:
    """All that should be equal: every version, the snapshot, provenance and cards."""
    store, directory = place
    with store._catalog.transaction() as transaction:
        found, _ = store._catalog.rebuild(transaction)
    directory.refresh()
    versions = {(one.tenant, one.name, one.version): one for one in found}
    book = SetBook(directory)
    return versions, replace(directory.snapshot, revision=0), book.origins("acme", "haiku"), book.card("acme", "haiku")


def actions(place: Place) -> list[tuple[int, str, str]]:
    return [(entry.id, entry.action, entry.target) for entry in place[1].audit_entries(AuditQuery())]


def test_store_goes_to_services_and_back_with_everything_it_has(
    place: OpenPlace, postgres: Any, bucket_url: str, tmp_path: Path
) -> None:
    folder = place("old")
    fill(folder)
    shared = place("new", database_url=postgres.empty_database(), blob_url=bucket_url)
    report = copy_everything(folder, shared)
    assert (report.num_versions, report.num_files) == (4, 2)
    assert state(shared) == state(folder)
    assert actions(shared)[:-1] == actions(folder)
    assert actions(shared)[-1][1] == "store.copy"
    for name, tenant in (("haiku", "acme"), ("pirate", "")):
        stored = shared[0].namespace(tenant).resolve(name)
        assert shared[0].namespace(tenant).load(stored).content_hash == stored.content_hash
    assert shared[0].namespace("acme").restore("haiku", 1)[0].version == 1

    put(shared[0], 4, "haiku", "acme")  # numbers go on, of versions and of rows
    SetBook(shared[1]).move_alias("acme", "haiku", "prod", 4)
    back = place("back")
    copy_everything(shared, back)
    assert state(back) == state(shared)
    assert back[0].namespace("acme").resolve("haiku").version == 4
    assert actions(back)[:-1] == actions(shared)


def test_copy_that_failed_half_way_goes_on(
    place: OpenPlace, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = place("old"), place("new", database_url=database_url)
    fill(source)
    real, placed = DiskBlobs.place, []

    def fail(blobs: DiskBlobs, staged: Path, content_hash: str) -> tuple[Path, ...]:
        placed.append(content_hash)
        if len(placed) == 2:
            raise OSError(28, "No space left on device")
        return real(blobs, staged, content_hash)

    with monkeypatch.context() as patch:
        patch.setattr(DiskBlobs, "place", fail)
        with pytest.raises(StoreError, match="can't be copied: No space left on device"):
            copy_everything(source, target)
    assert actions(target) == []
    copy_everything(source, target)
    assert state(target) == state(source)


def test_copy_does_not_touch_a_place_that_has_something_of_its_own(place: OpenPlace, database_url: str) -> None:
    source, target = place("old"), place("new", database_url=database_url)
    fill(source)
    put(target[0], 9, "haiku", "acme")
    before = state(target)
    with pytest.raises(StoreError, match="the target has another haiku@1"):
        copy_everything(source, target)
    target[1].create_tenant("acme")
    with pytest.raises(StoreError, match="is not empty"):
        copy_everything(source, target)
    assert state(target)[0] == before[0]


def test_copy_refuses_a_damaged_file(place: OpenPlace) -> None:
    source, target = place("old"), place("new")
    stored = put(source[0], 1, "haiku", "")
    other = put(source[0], 2, "other", "")
    source[0].blob_path(stored).write_bytes(source[0].blob_path(other).read_bytes())
    with pytest.raises(StoreError, match="haiku@1 is damaged"):
        copy_everything(source, target)
    assert not target[0].has_name("haiku")


def test_copy_command_says_what_it_copied(place: OpenPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(place("old"))
    command = ["store", "copy", "--store-dir", str(tmp_path / "old"), "--to-store-dir", str(tmp_path / "new")]
    assert cli.main(command) == 0
    assert capsys.readouterr().err == "copied: 4 versions, 2 files, and the tenants' database\n"
    assert cli.main(command) == 2
    assert "is not empty: copy into a new database" in capsys.readouterr().err
    assert place("new")[0].namespace("acme").resolve("haiku").version == 3


def test_copy_command_says_that_files_and_jobs_stay(
    place: OpenPlace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(place("old"))
    left = tmp_path / "old" / "fine-tuning"
    left.mkdir()
    assert cli.main(["store", "copy", "--store-dir", str(left.parent), "--to-store-dir", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().err.splitlines()[1]
    assert said == f"not copied: files and jobs of fine-tuning; copy {left} to {tmp_path / 'new' / 'fine-tuning'}"


def test_copy_command_needs_a_place_to_copy_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["store", "copy", "--store-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "reft-serve: Say where to copy it: --to-store-dir, --to-database-url.\n"
    assert list(tmp_path.iterdir()) == []
