"""Routes: the choice between targets, and what the book keeps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from sqlalchemy import update

from reft_client.types import RouteDefinition
from reft_server.errors import InvalidRequestError, TaskNotFoundError
from reft_server.routing import book as book_module
from reft_server.routing.book import NUM_KEPT_REVISIONS, RouteBook
from reft_server.routing.model import Route
from reft_server.tenants import SHARED, TenantDirectory
from reft_server.tenants.schema import ROUTE_REVISIONS

KEYS = [f"user-{number}" for number in range(4000)]


def definition(*targets: tuple[str, int]) -> RouteDefinition:
    return RouteDefinition.model_validate({"targets": [{"intervention": name, "weight": n} for name, n in targets]})


def route(*targets: tuple[str, int], tenant: str = "acme", task: str = "support", revision: int = 1) -> Route:
    return Route(tenant, task, revision, None, 0.0, definition(*targets))


def chosen(one: Route) -> list[str]:
    return [str(one.choose(key).intervention) for key in KEYS]


@pytest.fixture
def directory() -> TenantDirectory:
    directory = TenantDirectory.in_memory()
    directory.open()
    return directory


@pytest.fixture
def book(directory: TenantDirectory) -> RouteBook:
    return RouteBook(directory)


def test_choice_follows_the_weights() -> None:
    counts = Counter(chosen(route(("a", 6), ("b", 3), ("c", 1), ("d", 0))))
    # four standard deviations of a binomial count are about 124 here
    assert abs(counts["a"] - 2400) < 124
    assert abs(counts["b"] - 1200) < 116
    assert abs(counts["c"] - 400) < 76
    assert not counts["d"]


def test_choice_of_a_key_is_the_same_in_every_process_and_version() -> None:
    one = route(("a", 1), ("b", 1))
    assert [one.choose(f"user-{number}").intervention for number in range(16)] == list("babbabbabbbabbaa")


def test_choice_of_a_key_ignores_revision_order_and_how_a_set_is_written() -> None:
    first = chosen(route(("a", 1), ("b@3", 2)))
    assert first == chosen(route(("b@3", 2), ("a", 1), revision=7))
    written = RouteDefinition.model_validate(
        {"targets": [{"intervention": [{"name": "a"}]}, {"intervention": {"name": "b", "version": 3}, "weight": 2}]}
    )
    other = Route("acme", "support", 1, None, 0.0, written)
    assert [target.weight for target in map(other.choose, KEYS)] == [2 if name == "b@3" else 1 for name in first]


def test_new_weight_moves_keys_to_the_target_that_gains_only() -> None:
    before, after = chosen(route(("a", 90), ("b", 8), ("c", 2))), chosen(route(("a", 90), ("b", 20), ("c", 2)))
    moved = {(old, new) for old, new in zip(before, after, strict=True) if old != new}
    assert moved == {("a", "b"), ("c", "b")}


def test_choices_of_tenants_and_tasks_are_independent() -> None:
    first = chosen(route(("a", 1), ("b", 1)))
    for other in (route(("a", 1), ("b", 1), tenant="bank"), route(("a", 1), ("b", 1), task="sales")):
        num_same = sum(one == two for one, two in zip(first, chosen(other), strict=True))
        assert abs(num_same - 2000) < 127


def test_choice_without_a_key_is_by_chance() -> None:
    one = route(("a", 1), ("b", 1))
    assert {one.choose(None).intervention for _ in range(64)} == {"a", "b"}


def test_task_is_answered_by_the_own_route_then_the_shared_then_the_defaults(book: RouteBook) -> None:
    places = [(SHARED, "default"), ("acme", "default"), (SHARED, "support"), ("acme", "support")]
    for tenant, task in places:
        book.put(tenant, task, definition(("a", 1)))
        found = book.find("acme", "support")
        assert (found.tenant, found.task) == (tenant, task)
    assert book.find("bank", "support").tenant == SHARED
    assert book.find("bank", "sales").task == "default"


def test_unknown_task_without_a_default_is_an_error(book: RouteBook) -> None:
    book.put("acme", "default", definition(("a", 1)))
    with pytest.raises(TaskNotFoundError):
        book.find("bank", "support")


def test_rollback_goes_to_what_was_in_force_and_keeps_numbers(book: RouteBook) -> None:
    for name in ("a", "b"):
        book.put("acme", "support", definition((name, 1)))
    assert book.roll_back("acme", "support", 1).definition == definition(("a", 1))
    third = book.put("acme", "support", definition(("c", 1)))
    assert (third.revision, third.previous) == (3, 1)
    assert [one.revision for one in book.revisions("acme", "support")] == [3, 2, 1]
    with pytest.raises(TaskNotFoundError):
        book.roll_back("acme", "support", 4)
    assert book.find("acme", "support") == third


def test_old_revisions_are_dropped_but_not_what_a_rollback_goes_to(
    book: RouteBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "NUM_KEPT_REVISIONS", 3)
    for _ in range(5):
        book.put("acme", "support", definition(("a", 1)))
    assert [one.revision for one in book.revisions("acme", "support")] == [5, 4, 3]
    book.roll_back("acme", "support", 3)
    newest = book.put("acme", "support", definition(("a", 1)))
    assert (newest.revision, newest.previous) == (6, 3)
    assert [one.revision for one in book.revisions("acme", "support")] == [6, 5, 4, 3]
    assert NUM_KEPT_REVISIONS == 50


def test_routes_survive_a_restart_and_reach_other_processes(tmp_path: Path) -> None:
    first, second = TenantDirectory.of_store(tmp_path), TenantDirectory.of_store(tmp_path)
    first.open()
    second.open()
    RouteBook(first).put("acme", "support", definition(("a@3", 2), ("b", 1)))
    assert second.refresh()
    assert second.snapshot.routes == first.snapshot.routes
    RouteBook(second).delete("acme", "support")
    assert first.refresh()
    assert not first.snapshot.routes
    for directory in (first, second):
        directory.close()


def test_tenant_has_so_many_routes_at_most(book: RouteBook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(book_module, "MAX_ROUTES", 2)
    for task in ("one", "two", "two"):
        book.put("acme", task, definition(("a", 1)))
    with pytest.raises(InvalidRequestError):
        book.put("acme", "three", definition(("a", 1)))
    book.put("bank", "three", definition(("a", 1)))


def test_route_of_a_newer_server_leaves_the_others_in_force(directory: TenantDirectory, book: RouteBook) -> None:
    for task in ("one", "two"):
        book.put("acme", task, definition(("a", 1)))
    with directory.change("test.break", "acme", "one") as connection:
        connection.execute(
            update(ROUTE_REVISIONS).where(ROUTE_REVISIONS.c.task == "one").values(definition='{"new": 1}')
        )
    assert [one.task for one in book.list("acme")] == ["two"]
