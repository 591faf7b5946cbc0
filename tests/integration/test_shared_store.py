"""Stores of several machines on one real PostgreSQL and one real S3 server, each machine with a folder of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from reft_interventions import InterventionSet, save
from reft_interventions.errors import (
    InterventionNotFoundError,
    InterventionPreconditionError,
    InterventionQuotaError,
    StoreError,
)
from reft_interventions.store import InterventionStore, PutCondition, StoredVersion, StoreQuota
from reft_server.config import Settings
from reft_server.errors import ConfigurationError
from reft_server.storage import open_store
from tests.intervention_sets import make_set
from tests.postgres import Postgres
from tests.s3_server import S3Server

MakeMachine = Callable[..., InterventionStore]
KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from reft_server.config import Settings
from reft_server.storage import open_store
from reft_server.storage.database_catalog import DatabaseTransaction

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

DatabaseTransaction.write = die  # the file is in the bucket, the lock is held, the row is not written
folder, database_url, blob_url, path = sys.argv[1:]
with open_store(Settings(store_dir=folder, database_url=database_url, blob_url=blob_url)) as store:
    store.put(Path(path), "haiku")
"""


@pytest.fixture
def database(postgres: Postgres) -> str:
    """The URL of the database that the machines share."""
    return postgres.empty_database()


@pytest.fixture
def machine(database: str, bucket_url: str, tmp_path: Path) -> Iterator[MakeMachine]:
    """`machine("one")`: the store as the machine `one` sees it."""
    with ExitStack() as stack:

        def make(name: str, **settings: Any) -> InterventionStore:
            values = {"store_dir": tmp_path / name, "database_url": database, "blob_url": bucket_url, **settings}
            return stack.enter_context(open_store(Settings(**values)))

        yield make


def put(store: InterventionStore, content: InterventionSet, name: str = "haiku", **options: Any) -> StoredVersion:
    path = store.new_temp_path()
    save(content, path)
    try:
        return store.put(path, name, **options)
    finally:
        path.unlink(missing_ok=True)


def copies(root: Path) -> list[Path]:
    """The files that a machine has of its own."""
    return sorted(root.rglob("*.safetensors"))


def test_machines_see_each_others_versions_and_load_them(machine: MakeMachine, tmp_path: Path) -> None:
    one, other = machine("one"), machine("other")
    stored = put(one, make_set(1))
    with pytest.raises(InterventionNotFoundError):
        other.resolve("haiku")
    assert other.refresh()
    assert not other.refresh()
    assert other.resolve("haiku") == stored
    assert copies(tmp_path / "other") == []
    assert other.load(stored).content_hash == stored.content_hash
    with other.open(stored) as file, one.open(stored) as same:
        assert file.read() == same.read()
    assert put(other, make_set(2)).version == 2
    assert one.refresh()
    one.delete("haiku", 1)
    other.refresh()
    assert [found.version for found in other.versions("haiku")] == [2]
    assert [found.version for found in other.restore("haiku", 1)] == [1]


def test_numbers_are_used_once_among_machines(machine: MakeMachine) -> None:
    stores = [machine(f"machine-{number}") for number in range(3)]
    with ThreadPoolExecutor(6) as executor:
        stored = list(executor.map(lambda seed: put(stores[seed % 3], make_set(seed)), range(12)))
    assert sorted(version.version for version in stored) == list(range(1, 13))
    for store in stores:
        store.refresh()
        assert {found.version: found.content_hash for found in store.versions("haiku")} == {
            found.version: found.content_hash for found in stored
        }


def test_of_two_machines_with_one_condition_one_stores(machine: MakeMachine) -> None:
    stores = [machine("one"), machine("other")]
    barrier = threading.Barrier(2)

    def store_if_new(number: int) -> bool:
        barrier.wait()
        try:
            put(stores[number], make_set(number), condition=PutCondition(must_be_new=True))
        except InterventionPreconditionError:
            return False
        return True

    with ThreadPoolExecutor(2) as executor:
        assert sorted(executor.map(store_if_new, range(2))) == [False, True]


def test_file_goes_with_the_last_version_that_needs_it(
    machine: MakeMachine, s3_server: S3Server, bucket_url: str
) -> None:
    one, other = machine("one"), machine("other")
    put(one, make_set(1), "haiku")
    put(other, make_set(1), "pirate")
    one.delete("haiku", is_final=True)
    assert len(s3_server.keys(bucket_url)) == 1
    other.delete("pirate", is_final=True)
    assert s3_server.keys(bucket_url) == []


def test_refused_upload_leaves_no_file_behind(machine: MakeMachine, s3_server: S3Server, bucket_url: str) -> None:
    one = machine("one")
    with pytest.raises(InterventionQuotaError):
        put(one, make_set(1), quota=StoreQuota(max_bytes=1))
    assert s3_server.keys(bucket_url) == []
    put(one, make_set(1))
    with pytest.raises(InterventionPreconditionError):
        put(one, make_set(1), condition=PutCondition(must_be_new=True))
    assert len(s3_server.keys(bucket_url)) == 1


def test_rotten_copy_is_fetched_again_and_a_lost_file_is_an_error(
    machine: MakeMachine, s3_server: S3Server, bucket_url: str
) -> None:
    one, other = machine("one"), machine("other")
    stored = put(one, make_set(1))
    one.blob_path(stored).write_bytes(b"rotten")
    assert one.load(stored).content_hash == stored.content_hash
    s3_server.client().delete_object(Bucket=bucket_url.split("/")[2], Key=s3_server.keys(bucket_url)[0])
    other.refresh()
    with pytest.raises(StoreError, match="haiku@1"):
        other.load(stored)
    assert put(one, make_set(1)) == stored
    assert other.load(stored).content_hash == stored.content_hash


def test_copies_stay_within_their_bound_and_come_back(machine: MakeMachine, tmp_path: Path) -> None:
    one = machine("one", blob_cache_bytes=1 << 20)
    stored = [put(one, make_set(seed), f"set-{seed}") for seed in range(4)]
    assert len(copies(tmp_path / "one")) == 4
    one._blobs._max_cache_bytes = 2 * stored[0].size_bytes  # type: ignore[attr-defined]
    put(one, make_set(9), "last")
    assert len(copies(tmp_path / "one")) == 2
    for version in stored:
        assert one.load(version).content_hash == version.content_hash
        assert len(copies(tmp_path / "one")) == 2


def test_rebuild_removes_what_no_version_names(machine: MakeMachine, s3_server: S3Server, bucket_url: str) -> None:
    one = machine("one")
    stored = put(one, make_set(1))
    bucket = bucket_url.split("/")[2]
    s3_server.client().put_object(Bucket=bucket, Key=f"reft/sha256/00/{'0' * 64}.safetensors", Body=b"left")
    s3_server.client().put_object(Bucket=bucket, Key="others/file", Body=b"not ours")
    report = one.rebuild()
    assert (report.num_records, report.num_removed_files) == (1, 1)
    assert "others/file" in s3_server.keys(bucket_url)
    assert one.load(stored).content_hash == stored.content_hash


def test_machines_that_start_together_all_come_up(machine: MakeMachine) -> None:
    with ThreadPoolExecutor(3) as executor:
        stores = list(executor.map(lambda number: machine(f"machine-{number}"), range(3)))
    stored = put(stores[0], make_set(1))
    assert all(store.refresh() and store.resolve("haiku") == stored for store in stores[1:])


def test_machine_killed_under_the_lock_leaves_the_others_going(
    machine: MakeMachine, s3_server: S3Server, bucket_url: str, database: str, tmp_path: Path
) -> None:
    one = machine("one")
    first = put(one, make_set(1))
    save(make_set(2), tmp_path / "second.safetensors")
    save(make_set(3), tmp_path / "third.safetensors")
    arguments = [str(tmp_path / "killed"), database, bucket_url, str(tmp_path / "second.safetensors")]
    killed = subprocess.run([sys.executable, "-c", KILLED_WRITER, *arguments], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not one.refresh()
    assert len(s3_server.keys(bucket_url)) == 2
    third = one.put(tmp_path / "third.safetensors", "haiku")
    assert third.version == 2
    assert one.rebuild().num_removed_files == 1
    assert [one.load(stored).content_hash for stored in one.versions("haiku")] == [
        first.content_hash,
        third.content_hash,
    ]


def test_start_reads_everything_from_the_database(machine: MakeMachine) -> None:
    one = machine("one")
    for seed in range(3):
        put(one, make_set(seed))
    one.delete("haiku", 2)
    new = machine("new")
    assert new.versions("haiku") == one.versions("haiku")
    assert new.counts() == (1, 2)
    assert [stored.version for stored in new.deleted()] == [2]


def test_services_that_are_away_are_store_errors(
    machine: MakeMachine, s3_server: S3Server, bucket_url: str, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="'no-such-bucket' can't be used: HeadBucket 404"):
        machine("one", blob_url=bucket_url.replace(bucket_url.split("/")[2], "no-such-bucket"))
    with pytest.raises(StoreError, match="can't be used: EndpointConnectionError"):
        machine("one", blob_url="s3://bucket/?endpoint_url=http://127.0.0.1:1&region_name=us-east-1")
    with pytest.raises(StoreError, match="port 1 failed"):
        machine("one", database_url="postgresql://reft@127.0.0.1:1/name")


@pytest.mark.parametrize("url", ["s3://", "s3:///prefix", "s3://bucket?other=1"])
def test_url_that_names_no_bucket_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--blob-url must be"):
        open_store(Settings(store_dir=tmp_path, database_url="sqlite://", blob_url=url))


def test_bucket_without_a_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs --database-url"):
        open_store(Settings(store_dir=tmp_path, blob_url="s3://bucket"))


def test_versions_in_a_database_with_files_in_the_folder(tmp_path: Path, database_url: str) -> None:
    settings = Settings(store_dir=tmp_path / "store", database_url=database_url)
    with open_store(settings) as one, open_store(settings) as other:
        stored = put(one, make_set(1))
        other.refresh()
        assert other.load(stored).content_hash == stored.content_hash
        assert not list((tmp_path / "store" / "refs").iterdir())
