"""The audit log over HTTP: what a page holds, the export, and that content and keys never get there."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_interventions.store import InterventionStore
from reft_server.tenants import Scope, TenantDirectory
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]


@dataclass(frozen=True)
class World:
    """A server, an operator's headers, and those of the tenant acme."""

    client: TestClient
    operator: dict[str, str]
    acme: dict[str, str]
    acme_key_id: str

    def entries(self, **query: Any) -> list[dict[str, Any]]:
        """A page of the log."""
        answer = self.client.get("/v1/admin/audit", params=query, headers=self.operator)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]  # type: ignore[no-any-return]


@pytest.fixture
def world(make_client: MakeClient) -> World:
    directory = TenantDirectory.in_memory()
    directory.open()
    directory.create_tenant("acme")

    def key(tenant: str, *scopes: Scope) -> tuple[str, dict[str, str]]:
        made, born = directory.create_key(tenant, scopes)
        return made.key_id, {"authorization": f"Bearer {born.text}"}

    key_id, acme = key("acme", "infer", "upload")
    return World(make_client(directory=directory), key("", "admin")[1], acme, key_id)


def test_changes_of_the_store_are_logged_with_who_made_them(world: World) -> None:
    content = dumps(make_set(1))
    headers = {**world.acme, "x-request-id": "req-42"}
    stored = world.client.post("/v1/interventions?name=style", content=content, headers=headers).json()
    world.client.put("/v1/interventions/style/grants/globex", headers=world.acme)
    world.client.delete("/v1/interventions/style", headers=world.acme)
    entries = [one for one in world.entries(order="asc", tenant="acme") if one["actor"] == "acme"]
    assert [(one["action"], one["target"], one["key_id"]) for one in entries] == [
        ("set.upload", "style", world.acme_key_id),
        ("grant.create", "style", world.acme_key_id),
        ("set.delete", "style", world.acme_key_id),
        ("grant.delete", "style", world.acme_key_id),
    ]
    assert entries[0]["request_id"] == "req-42"
    assert entries[0]["details"] == {"content_hash": stored["content_hash"]}
    assert entries[2]["details"] == {"versions": [1]}


def test_refused_requests_leave_no_entry(world: World) -> None:
    before = world.entries()
    world.client.post("/v1/interventions?name=style", content=b"nonsense", headers=world.acme)
    world.client.delete("/v1/interventions/none", headers=world.acme)
    world.client.post("/v1/admin/tenants", json={"name": "new"}, headers=world.acme)
    world.client.delete("/v1/admin/keys/0123456789abcdef", headers=world.operator)
    assert world.entries() == before


def test_store_that_fails_leaves_two_entries(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(InterventionStore, "put", fail)
    answer = world.client.post("/v1/interventions?name=style", content=dumps(make_set(1)), headers=world.acme)
    assert answer.status_code == 500
    newest, before = world.entries(limit=2)
    assert (before["action"], newest["action"]) == ("set.upload", "set.upload.failed")
    assert newest["details"]["error"] == "OSError"
    assert newest["details"]["content_hash"] == before["details"]["content_hash"]


def test_pages_put_together_are_the_whole_log_in_either_order(world: World) -> None:
    for number in range(5):
        world.client.post("/v1/admin/tenants", json={"name": f"t{number}"}, headers=world.operator)
    for order in ("asc", "desc"):
        whole, pages, after = world.entries(order=order), [], None
        while True:
            query = {"order": order, "limit": 3} | ({} if after is None else {"after": after})
            page = world.client.get("/v1/admin/audit", params=query, headers=world.operator).json()
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            pages += page["data"]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert pages == whole
        assert len(whole) == 8
    assert world.entries(order="asc") == world.entries()[::-1]
    empty = world.client.get("/v1/admin/audit?after=0", headers=world.operator).json()
    assert (empty["data"], empty["last_id"], empty["has_more"]) == ([], None, False)


def test_entries_are_found_by_tenant_action_and_time(world: World) -> None:
    world.client.post("/v1/admin/tenants", json={"name": "globex"}, headers=world.operator)
    newest = world.entries()[0]
    assert [one["target"] for one in world.entries(tenant="globex")] == ["globex"]
    assert {one["action"] for one in world.entries(action="key.")} == {"key.create"}
    assert {one["action"] for one in world.entries(action="tenant.create")} == {"tenant.create"}
    assert world.entries(action="tenant.c") == []
    assert world.entries(since=newest["at"]) == [newest]
    assert newest not in world.entries(until=newest["at"])


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=1001", "order=up", "after=-1", "since=nan", "tenant=A%00", "action=%25"]
)
def test_query_out_of_range_is_refused(world: World, query: str) -> None:
    answer = world.client.get(f"/v1/admin/audit?{query}", headers=world.operator)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_export_is_the_whole_log_as_json_lines(world: World) -> None:
    answer = world.client.get("/v1/admin/audit/export", headers=world.operator)
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    exported = [json.loads(line) for line in answer.text.splitlines()]
    assert exported == world.entries(order="asc")
    rest = world.client.get(f"/v1/admin/audit/export?after={exported[1]['id']}", headers=world.operator)
    assert [json.loads(line) for line in rest.text.splitlines()] == exported[2:]
    assert world.client.get("/v1/admin/audit/export?tenant=nobody", headers=world.operator).text == ""


def test_log_holds_no_key_and_no_content(world: World) -> None:
    secret = "s3cret-words-of-a-client"
    made = world.client.post(
        "/v1/admin/tenants/acme/keys", json={"scopes": ["infer"], "description": secret}, headers=world.operator
    ).json()
    world.client.post(f"/v1/admin/keys/{made['id']}/rotate", headers=world.operator)
    world.client.post("/v1/completions", json={"prompt": secret, "max_tokens": 1}, headers=world.acme)
    content = dumps(make_set(1, name=secret))
    world.client.post("/v1/interventions?name=style", content=content, headers=world.acme)
    log = world.client.get("/v1/admin/audit/export", headers=world.operator).text
    assert "set.upload" in log
    assert secret not in log
    for headers in (world.operator, world.acme, {"authorization": f"Bearer {made['key']}"}):
        assert headers["authorization"].split("-", 2)[2] not in log
