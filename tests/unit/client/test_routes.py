"""Routes over both clients and the command line."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import reft_client
from tests.unit.client.fakes import COMPLETION, MakeClient, Run, Server, answering, type_in

ROUTE = {
    "task": "support",
    "tenant": "acme",
    "revision": 3,
    "previous": 1,
    "created": 0,
    "targets": [
        {"intervention": "polite@4", "weight": 9},
        {"intervention": [{"name": "polite", "version": 5}, {"name": "brief", "scale": 0.5}], "weight": 1},
        {"weight": 0},
    ],
    "shadow": {"intervention": "polite@6", "fraction": 0.1},
    "description": "the \x1b[31mdesk",
}
TARGETS = "polite@4=9 polite@5+brief*0.5=1 base=0"
ROW = f"support\t3\tyes\tacme\t{TARGETS}\tpolite@6 (0.1)\t1970-01-01 00:00\tthe \ufffd[31mdesk"
DELETED = {"task": "support", "deleted": True}


@pytest.mark.parametrize(
    ("call", "request_line", "answer"),
    [
        (lambda client: client.routes.list(), "GET /v1/routes", {"data": [ROUTE]}),
        (lambda client: client.routes.get("support"), "GET /v1/routes/support", ROUTE),
        (lambda client: client.routes.get("../a b"), "GET /v1/routes/..%2Fa%20b", ROUTE),
        (
            lambda client: client.routes.revisions("support"),
            "GET /v1/routes/support/revisions",
            {"task": "support", "data": [ROUTE]},
        ),
        (lambda client: client.routes.rollback("support"), "POST /v1/routes/support/rollback", ROUTE),
        (lambda client: client.routes.delete("support"), "DELETE /v1/routes/support", DELETED),
    ],
)
def test_routes_ask_the_right_path(
    make_client: MakeClient, call: Any, request_line: str, answer: dict[str, Any]
) -> None:
    handler, requests = answering(answer)
    found = call(make_client(handler))
    assert f"{requests[0].method} {requests[0].url.raw_path.decode()}" == request_line
    assert found.model_dump(exclude_unset=True) == type(found).model_validate(answer).model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("targets", "options", "sent"),
    [
        ("a", {}, {"targets": [{"intervention": "a"}], "description": ""}),
        (["a@1", "b"], {}, {"targets": [{"intervention": "a@1"}, {"intervention": "b"}], "description": ""}),
        (
            [{"intervention": ["a", {"name": "b", "scale": 2}], "weight": 3}, {"weight": 1}],
            {"shadow": {"intervention": "c", "fraction": 0.5}, "description": "d"},
            {
                "targets": [{"intervention": ["a", {"name": "b", "scale": 2.0}], "weight": 3}, {"weight": 1}],
                "shadow": {"intervention": "c", "fraction": 0.5},
                "description": "d",
            },
        ),
    ],
)
def test_set_sends_targets_in_one_shape(
    make_client: MakeClient, targets: Any, options: dict[str, Any], sent: dict[str, Any]
) -> None:
    handler, requests = answering(ROUTE)
    assert make_client(handler).routes.set("support", targets, **options).revision == 3
    assert requests[0].method == "PUT"
    assert json.loads(requests[0].content) == sent


def test_rollback_names_a_revision(make_client: MakeClient) -> None:
    handler, requests = answering(ROUTE)
    make_client(handler).routes.rollback("support", 3)
    assert json.loads(requests[0].content) == {"revision": 3}


@pytest.mark.parametrize(
    "call",
    [
        lambda routes: routes.set("support", []),
        lambda routes: routes.set("support", [{"intervention": "a", "weight": 0}]),
        lambda routes: routes.set("support", "a@"),
        lambda routes: routes.set("support", "a", shadow={"fraction": 2}),
        lambda routes: routes.rollback("support", 0),
    ],
)
def test_what_can_not_be_a_route_is_not_sent(make_client: MakeClient, call: Any) -> None:
    handler, requests = answering(ROUTE)
    with pytest.raises(reft_client.InvalidArgumentError):
        call(make_client(handler).routes)
    assert not requests


def test_changes_are_not_repeated_when_the_connection_breaks(make_client: MakeClient) -> None:
    for call in (lambda routes: routes.set("support", "a"), lambda routes: routes.rollback("support")):
        handler, requests = answering(httpx.ReadError("reset"))
        with pytest.raises(reft_client.APIConnectionError):
            call(make_client(handler).routes)
        assert len(requests) == 1


def test_generation_names_a_task_and_its_answer_the_route(make_client: MakeClient) -> None:
    handler, requests = answering({**COMPLETION, "route": {"task": "support", "revision": 3, "tenant": "acme"}})
    answer = make_client(handler).complete("hello", task="support", routing_key="u-17")
    assert json.loads(requests[0].content) == {"prompt": "hello", "task": "support", "routing_key": "u-17"}
    assert (answer.route.task, answer.route.revision) == ("support", 3)


@pytest.mark.parametrize("command", [("list",), ("show", "support"), ("revisions", "support")])
def test_command_prints_routes(server: Server, run: Run, command: tuple[str, ...]) -> None:
    server.json("/v1/routes", {"data": [ROUTE]})
    server.json("/v1/routes/support", ROUTE)
    server.json("/v1/routes/support/revisions", {"task": "support", "data": [ROUTE]})
    assert run("routes", *command)[1].splitlines()[1:] == [ROW]
    assert '"revision": 3' in run("routes", *command, "--json")[1]


def test_command_lists_no_routes_with_advice(server: Server, run: Run) -> None:
    server.json("/v1/routes", {"data": []})
    code, out, err = run("routes", "list")
    assert (code, out) == (0, "")
    assert "reft routes set" in err


def test_command_sets_what_it_prints(server: Server, run: Run) -> None:
    server.json("/v1/routes/support", ROUTE)
    shadow = ("--shadow", "polite@6", "--fraction", "0.1", "--description", "d")
    targets = ("polite@4=9", "polite@5+brief*0.5=1", "base=0", "b@sha256:abc")
    assert run("routes", "set", "support", *targets, *shadow)[1].splitlines()[1:] == [ROW]
    assert server.sent == {
        "targets": [
            {"intervention": [{"name": "polite", "version": 4}], "weight": 9},
            {"intervention": [{"name": "polite", "version": 5}, {"name": "brief", "scale": 0.5}], "weight": 1},
            {"intervention": [], "weight": 0},
            {"intervention": [{"name": "b", "version": "sha256:abc"}], "weight": 1},
        ],
        "shadow": {"intervention": [{"name": "polite", "version": 6}], "fraction": 0.1},
        "description": "d",
    }


@pytest.mark.parametrize("target", ["a=x", "a=-1", "a=", "@3", "a*b"])
def test_command_refuses_what_is_no_target(run: Run, target: str) -> None:
    assert run("routes", "set", "support", target)[0] == 2


def test_command_rolls_back(server: Server, run: Run) -> None:
    server.json("/v1/routes/support/rollback", ROUTE)
    assert run("routes", "rollback", "support", "3")[1].splitlines()[1:] == [ROW]
    assert server.sent == {"revision": 3}
    run("routes", "rollback", "support")
    assert server.sent == {}


@pytest.mark.parametrize(("answer", "is_deleted"), [("y\n", True), ("\n", False)])
def test_command_deletes_after_asking(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, is_deleted: bool
) -> None:
    type_in(monkeypatch, answer, is_terminal=True)
    server.json("/v1/routes/support", DELETED)
    assert run("routes", "delete", "support")[0] == 0
    assert len(server.requests) == int(is_deleted)
    type_in(monkeypatch, "", is_terminal=False)
    assert run("routes", "delete", "support")[0] == 2
    assert run("routes", "delete", "support", "--yes")[1] == "deleted the route of support\n"


def test_command_generates_by_task(server: Server, run: Run) -> None:
    server.json("/v1/completions", COMPLETION)
    run("complete", "hello", "--task", "support", "--routing-key", "u-17", "--no-stream")
    assert (server.sent["task"], server.sent["routing_key"]) == ("support", "u-17")
