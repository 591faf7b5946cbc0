"""`client.admin` on both clients, and `reft admin`."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.unit.client.fakes import MakeClient, Run, Server, answering, type_in

TENANT = {"name": "acme", "created": 0, "limits": {"max_sets": 3}}
KEY = {"id": "0123456789abcdef", "tenant": "acme", "scopes": ["infer"], "created": 0, "description": "the \x1b[31mapp"}
NEW_KEY = {**KEY, "key": "reft-0123456789abcdef-secret"}
ENTRY = {
    "id": 7,
    "at": 0.5,
    "actor": "shared",
    "key_id": "fedcba9876543210",
    "request_id": "req-1",
    "action": "key.create",
    "tenant": "acme",
    "target": KEY["id"],
    "details": {"scopes": ["infer"], "expires_at": None},
}
PAGE = {"data": [ENTRY], "first_id": 7, "last_id": 7, "has_more": False}
RELOAD = {"changed": ["log_level"], "needs_restart": ["port"]}


@pytest.mark.parametrize(
    ("call", "request_line", "body", "answer"),
    [
        (lambda admin: admin.tenants(), "GET /v1/admin/tenants", None, {"data": [TENANT]}),
        (lambda admin: admin.tenant("../x"), "GET /v1/admin/tenants/..%2Fx", None, TENANT),
        (lambda admin: admin.create_tenant("acme"), "POST /v1/admin/tenants", {"name": "acme"}, TENANT),
        (
            lambda admin: admin.set_limits("acme", {"max_sets": 3}),
            "PUT /v1/admin/tenants/acme/limits",
            {"max_sets": 3},
            TENANT,
        ),
        (
            lambda admin: admin.delete_tenant("acme"),
            "DELETE /v1/admin/tenants/acme",
            None,
            {"name": "acme", "deleted": True},
        ),
        (lambda admin: admin.keys("acme"), "GET /v1/admin/tenants/acme/keys", None, {"data": [KEY]}),
        (
            lambda admin: admin.create_key("acme", expires_in_s=60),
            "POST /v1/admin/tenants/acme/keys",
            {"scopes": ["infer", "upload"], "description": "", "expires_in_s": 60.0},
            NEW_KEY,
        ),
        (lambda admin: admin.rotate_key("k/1"), "POST /v1/admin/keys/k%2F1/rotate", {"overlap_s": 0.0}, NEW_KEY),
        (lambda admin: admin.revoke_key("k"), "DELETE /v1/admin/keys/k", None, KEY),
        (lambda admin: admin.audit(), "GET /v1/admin/audit?limit=100&order=desc", None, PAGE),
        (
            lambda admin: admin.audit(limit=5, after=9, order="asc", tenant="acme", action="key.", since=1.5, until=2),
            "GET /v1/admin/audit?after=9&tenant=acme&action=key.&since=1.5&until=2&limit=5&order=asc",
            None,
            PAGE,
        ),
        (lambda admin: admin.reload(), "POST /v1/admin/reload", None, RELOAD),
    ],
)
def test_admin_asks_the_right_path(
    make_client: MakeClient, call: Any, request_line: str, body: dict[str, Any] | None, answer: dict[str, Any]
) -> None:
    handler, requests = answering(answer)
    found = call(make_client(handler).admin)
    assert f"{requests[0].method} {requests[0].url.raw_path.decode()}" == request_line
    assert (json.loads(requests[0].content) if requests[0].content else None) == body
    assert found.model_dump(exclude_unset=True) == type(found).model_validate(answer).model_dump(exclude_unset=True)


def test_repr_of_a_new_key_does_not_show_it(make_client: MakeClient) -> None:
    handler, _ = answering(NEW_KEY)
    assert "secret" not in repr(make_client(handler).admin.create_key("acme"))


def test_command_prints_tenants_keys_and_what_a_reload_changed(server: Server, run: Run) -> None:
    server.json("/v1/admin/tenants", {"data": [TENANT]})
    server.json("/v1/admin/tenants/acme/keys", {"data": [KEY]})
    server.json("/v1/admin/reload", RELOAD)
    assert run("admin", "tenants")[1].splitlines()[1:] == ["acme\t1970-01-01 00:00\tmax_sets=3"]
    keys = run("admin", "keys", "acme")[1].splitlines()[1:]
    assert keys == [f"{KEY['id']}\tinfer\tactive\t1970-01-01 00:00\t\tthe \ufffd[31mapp"]
    assert run("admin", "reload")[1:] == ("changed: log_level\n", "needs a restart: port\n")
    for command in (("tenants",), ("keys", "acme"), ("reload",)):
        assert json.loads(run("admin", *command, "--json")[1])


def test_command_sets_limits_and_makes_keys(server: Server, run: Run) -> None:
    server.json("/v1/admin/tenants", TENANT)
    server.json("/v1/admin/tenants/acme/limits", TENANT)
    server.json("/v1/admin/tenants/acme/keys", NEW_KEY)
    server.json("/v1/admin/keys/k/rotate", NEW_KEY)
    server.json("/v1/admin/keys/k", KEY)
    assert run("admin", "create-tenant", "acme", "--max-sets", "3")[0] == 0
    assert server.sent == {"name": "acme", "limits": {"max_sets": 3}}
    run("admin", "set-limits", "acme", "--requests-per-minute", "60")
    assert server.sent == {"requests_per_minute": 60}
    code, out, err = run("admin", "create-key", "acme", "--scopes", "infer", "--expires-in-days", "1")
    assert (code, out) == (0, f"{NEW_KEY['key']}\n")
    assert "shown this once" in err
    assert server.sent == {"scopes": ["infer"], "description": "", "expires_in_s": 86_400.0}
    assert run("admin", "rotate-key", "k", "--overlap-s", "5")[1] == f"{NEW_KEY['key']}\n"
    assert server.sent == {"overlap_s": 5.0}
    assert run("admin", "revoke-key", "k")[1] == f"revoked the key {KEY['id']} of acme\n"


def test_command_reads_the_log_page_by_page(server: Server, run: Run) -> None:
    def page(request: httpx.Request) -> httpx.Response:
        number = int(request.url.params.get("after", 10)) - 1
        limit = int(request.url.params["limit"])
        data = [{**ENTRY, "id": one} for one in range(number, max(number - min(limit, 4), 0), -1)]
        last = data[-1]["id"]
        return httpx.Response(200, json={"data": data, "last_id": last, "has_more": last > 1})

    server.answers["/v1/admin/audit"] = page
    rows = run("admin", "audit", "--limit", "6")[1].splitlines()
    assert [row.split("\t")[0] for row in rows] == ["id", "9", "8", "7", "6", "5", "4"]
    assert rows[1].split("\t")[1:5] == ["1970-01-01 00:00:00", "shared", "fedcba9876543210", "key.create"]
    whole = run("admin", "audit", "--limit", "0", "--json", "--since", "2026-11-21", "--tenant", "acme")[1]
    assert [json.loads(line)["id"] for line in whole.splitlines()] == list(range(9, 0, -1))
    assert server.requests[-1].url.params["since"] == "1795219200.0"


@pytest.mark.parametrize(("answer", "is_deleted"), [("y\n", True), ("\n", False)])
def test_command_deletes_a_tenant_after_asking(
    server: Server, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, is_deleted: bool
) -> None:
    type_in(monkeypatch, answer, is_terminal=True)
    server.json("/v1/admin/tenants/acme", {"name": "acme", "deleted": True})
    assert run("admin", "delete-tenant", "acme")[0] == 0
    assert len(server.requests) == int(is_deleted)
    type_in(monkeypatch, "", is_terminal=False)
    assert run("admin", "delete-tenant", "acme")[0] == 2
    assert run("admin", "delete-tenant", "acme", "--yes")[1] == "deleted acme\n"


def test_command_grants_and_takes_back(server: Server, run: Run) -> None:
    grant = {"name": "haiku", "tenant": "globex"}
    server.json("/v1/interventions/haiku/grants", {"data": [grant]})
    server.json("/v1/interventions/haiku/grants/globex", grant)
    assert run("interventions", "grant", "haiku", "globex")[1] == "globex may use haiku\n"
    assert server.requests[-1].method == "PUT"
    assert run("interventions", "grants", "haiku")[1].splitlines()[1:] == ["haiku\tglobex"]
    assert run("interventions", "withdraw", "haiku", "globex")[1] == "globex may no longer use haiku\n"
    assert server.requests[-1].method == "DELETE"


def test_command_refuses_a_time_that_is_none(run: Run) -> None:
    assert run("admin", "audit", "--since", "yesterday")[0] == 2
