"""Aliases, notes, provenance and idempotency keys in both databases, and between two servers on one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from reft_interventions.errors import InterventionConflictError, InterventionNotFoundError
from reft_interventions.store import StoredVersion
from reft_server.errors import IdempotencyKeyInUseError, IdempotencyKeyReusedError
from reft_server.tenants import TenantDirectory
from reft_server.tenants.database import engine_of_url
from reft_server.tenants.idempotency import KEPT_S, IdempotencyKeys, KeptAnswer
from reft_server.tenants.set_book import Origin, SetBook
from reft_server.tenants.set_schema import IDEMPOTENCY_KEYS


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
