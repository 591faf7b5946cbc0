"""Aliases, notes, provenance and idempotency keys in both databases, and between two servers on one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from reft_interventions import save
from reft_interventions.errors import InterventionConflictError, InterventionNotFoundError, ReftError
from reft_interventions.store import InterventionStore, StoredVersion
from reft_server.errors import IdempotencyKeyInUseError, IdempotencyKeyReusedError
from reft_server.storage import DatabaseCatalog
from reft_server.tenants import TenantDirectory
from reft_server.tenants.database import engine_of_url
from reft_server.tenants.idempotency import KEPT_S, IdempotencyKeys, KeptAnswer
from reft_server.tenants.namespaces import Namespaces
from reft_server.tenants.set_book import Origin, SetBook
from reft_server.tenants.set_schema import IDEMPOTENCY_KEYS
from tests.intervention_sets import make_set


@pytest.fixture
def directories(database_url: str) -> Iterator[tuple[TenantDirectory, TenantDirectory]]:
    """Two servers' on one database, of each kind."""
    both = TenantDirectory(engine_of_url(database_url)), TenantDirectory(engine_of_url(database_url))
    for directory in both:
        directory.open()
    yield both
    for directory in both:
        directory.close()


@pytest.fixture
def directory(directories: tuple[TenantDirectory, TenantDirectory]) -> TenantDirectory:
    return directories[0]


def test_alias_moves_and_goes_back_for_every_server(directories: tuple[TenantDirectory, TenantDirectory]) -> None:
    here, there = (SetBook(directory) for directory in directories)
    assert here.move_alias("acme", "haiku", "prod", 1) is None
    assert here.move_alias("acme", "haiku", "prod", 2) == 1
    assert here.move_alias("acme", "haiku", "prod", 2) == 2  # moves nothing, so that a rollback goes to 1
    directories[1].refresh()
    assert dict(there.notes("acme", "haiku").aliases) == {"prod": 2}
    assert there.roll_back("acme", "haiku", "prod") == (1, 2)
    with pytest.raises(InterventionConflictError):
        here.roll_back("acme", "haiku", "prod")
    assert [move.version for move in here.alias_history("acme", "haiku", "prod")] == [1]
    here.delete_alias("acme", "haiku", "prod")
    with pytest.raises(InterventionNotFoundError):
        there.roll_back("acme", "haiku", "prod")


def test_history_of_an_alias_is_bounded(directory: TenantDirectory) -> None:
    book = SetBook(directory)
    for version in range(1, 106):
        book.move_alias("", "haiku", "prod", version)
    history = book.alias_history("", "haiku", "prod")
    assert [move.version for move in history] == list(range(105, 4, -1))


def test_moves_at_once_leave_one_line_of_history(directories: tuple[TenantDirectory, TenantDirectory]) -> None:
    books = [SetBook(directory) for directory in directories]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: books[n % 2].move_alias("", "haiku", "prod", n), range(1, 21)))
    versions = [move.version for move in books[0].alias_history("", "haiku", "prod")]
    assert sorted(versions) == list(range(1, 21)), "a move was lost"


def test_notes_are_merged_and_forgotten_with_their_set(directories: tuple[TenantDirectory, TenantDirectory]) -> None:
    here, there = (SetBook(directory) for directory in directories)
    here.describe("acme", "haiku", {"description": "x", "labels": {"a": "1", "b": ""}})
    here.describe("acme", "haiku", {"labels": {"a": None, "c": "\u00fc"}})
    here.set_card("acme", "haiku", "# Card")
    here.describe("other", "haiku", {"labels": {"mine": ""}})
    here.move_alias("acme", "haiku", "prod", 1)
    directories[1].refresh()
    notes = there.notes("acme", "haiku")
    assert (notes.description, dict(notes.labels)) == ("x", {"b": "", "c": "\u00fc"})
    assert there.card("acme", "haiku") == "# Card"
    there.forget("acme", "haiku")
    directories[0].refresh()
    assert here.notes("acme", "haiku") == SetBook(TenantDirectory.in_memory()).notes("acme", "haiku")
    assert here.card("acme", "haiku") is None
    assert dict(here.notes("other", "haiku").labels) == {"mine": ""}


def test_provenance_is_written_once(directory: TenantDirectory) -> None:
    book = SetBook(directory)
    stored = StoredVersion("haiku", 1, "sha256:ff", 1, 0.0, "{}", tenant="acme")
    book.note_origin(stored, Origin("fine_tuning", {"job": "j"}))
    book.note_origin(stored, Origin("upload", {"job": "other"}))
    assert book.origins("acme", "haiku") == {1: Origin("fine_tuning", {"job": "j"})}
    assert book.origins("other", "haiku") == {}


def test_key_is_answered_again_by_every_server(directories: tuple[TenantDirectory, TenantDirectory]) -> None:
    here, there = (IdempotencyKeys(directory) for directory in directories)
    assert here.begin("acme", "k", "same") is None
    with pytest.raises(IdempotencyKeyInUseError):
        there.begin("acme", "k", "same")
    here.finish("acme", "k", KeptAnswer(201, "{}"))
    assert there.begin("acme", "k", "same") == KeptAnswer(201, "{}")
    with pytest.raises(IdempotencyKeyReusedError):
        there.begin("acme", "k", "another")
    assert there.begin("other", "k", "another") is None
    there.give_up("other", "k")
    assert here.begin("other", "k", "another") is None


def test_of_requests_at_once_one_gets_the_key(directories: tuple[TenantDirectory, TenantDirectory]) -> None:
    keys = [IdempotencyKeys(directory) for directory in directories]

    def begin(number: int) -> str:
        try:
            return "done" if keys[number % 2].begin("acme", "k", "same") is None else "kept"
        except IdempotencyKeyInUseError:
            return "in use"

    with ThreadPoolExecutor(4) as threads:
        outcomes = list(threads.map(begin, range(8)))
    assert sorted(outcomes) == ["done", *["in use"] * 7]


@pytest.mark.parametrize(("age_s", "is_done"), [(KEPT_S + 1, True), (KEPT_S + 1, False), (601.0, False)])
def test_key_that_is_old_or_whose_server_died_is_free(directory: TenantDirectory, age_s: float, is_done: bool) -> None:
    keys = IdempotencyKeys(directory)
    keys.begin("acme", "k", "same")
    if is_done:
        keys.finish("acme", "k", KeptAnswer(200, "{}"))
    with directory.writing() as connection:
        connection.execute(update(IDEMPOTENCY_KEYS).values(created_at=time.time() - age_s))
    assert keys.begin("acme", "k", "another") is None


class Server:
    """What moves aliases and deletes versions on one of several servers that share a store and a database."""

    def __init__(self, store: InterventionStore, directory: TenantDirectory) -> None:
        self.store = store
        directory.read_first(store.refresh)
        self.namespaces = Namespaces(store, directory)
        self.book = SetBook(directory, self.namespaces.lives)
        self.directory = directory


@pytest.fixture
def servers(database_url: str, tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Two; `acme/haiku` has two versions."""
    with ExitStack() as stack:
        found = []
        for _ in range(2):
            store = stack.enter_context(
                InterventionStore(tmp_path / "store", 3600.0, catalog=DatabaseCatalog(engine_of_url(database_url)))
            )
            directory = TenantDirectory(engine_of_url(database_url))
            directory.open()
            stack.callback(directory.close)
            found.append(Server(store, directory))
        for seed in (1, 2):
            path = found[0].store.new_temp_path()
            save(make_set(seed), path)
            found[0].store.namespace("acme").put(path, "haiku")
        found[1].directory.refresh()
        yield found[0], found[1]


def at_once(
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    method: str,
    first: Callable[[], object],
    other: Callable[[], object],
) -> list[object]:
    """Run `first` up to its call of a method, then begin `other`; return what both return or raise."""
    real, is_there, goes_on = getattr(owner, method), threading.Event(), threading.Event()

    def wait(*args: Any, **options: Any) -> Any:
        is_there.set()
        goes_on.wait(60)
        return real(*args, **options)

    def outcome(call: Callable[[], object]) -> object:
        try:
            return call()
        except ReftError as error:
            return error

    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as threads:
        patch.setattr(owner, method, wait)
        one = threads.submit(outcome, first)
        assert is_there.wait(60)
        two = threads.submit(outcome, other)
        wait_for([two], timeout=0.1)  # it ends before the first goes on only if nothing holds it up
        goes_on.set()
        return [one.result(60), two.result(60)]


def test_alias_is_not_moved_to_a_version_that_another_server_deletes(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = servers
    deleted, moved = at_once(
        monkeypatch,
        InterventionStore,
        "delete",
        lambda: here.namespaces.delete("haiku", 1, "acme"),
        lambda: there.book.move_alias("acme", "haiku", "prod", 1),
    )
    assert isinstance(deleted, tuple)
    assert isinstance(moved, InterventionNotFoundError)
    assert here.directory.refresh() is False  # no alias was written


def test_version_is_not_deleted_while_another_server_moves_an_alias_to_it(
    servers: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = servers
    moved, deleted = at_once(
        monkeypatch,
        here.book,
        "_lives",
        lambda: here.book.move_alias("acme", "haiku", "prod", 1),
        lambda: there.namespaces.delete("haiku", 1, "acme"),
    )
    assert moved is None
    assert isinstance(deleted, InterventionConflictError)
    assert there.namespaces.resolve("haiku", "prod", "acme").version == 1


def test_alias_does_not_go_back_to_a_deleted_version(servers: tuple[Server, Server]) -> None:
    here, there = servers
    for version in (1, 2):
        here.book.move_alias("acme", "haiku", "prod", version)
    there.namespaces.delete("haiku", 1, "acme")
    with pytest.raises(InterventionConflictError, match="version 1, which was deleted"):
        here.book.roll_back("acme", "haiku", "prod")
    there.namespaces.restore("haiku", 1, "acme")
    assert here.book.roll_back("acme", "haiku", "prod") == (1, 2)
