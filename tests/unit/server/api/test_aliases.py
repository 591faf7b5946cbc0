"""Aliases: promoted, resolved wherever a set is named, rolled back, deleted."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_server.tenants import TenantDirectory
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

URL = "/v1/interventions/style"


@pytest.fixture
def client(make_client: Any) -> TestClient:
    """With two versions of `style`."""
    client: TestClient = make_client()
    for seed in (0, 1):
        sent = client.post("/v1/interventions", params={"name": "style"}, content=dumps(make_set(seed)))
        assert sent.status_code == 201, sent.text
    return client


def put(client: TestClient, alias: str, version: int | str, status: int = 200) -> Any:
    response = client.put(f"{URL}/aliases/{alias}", json={"version": version})
    assert response.status_code == status, response.text
    return response.json()


def test_promoted_version_answers_until_the_alias_moves(client: TestClient, engine: FakeEngine) -> None:
    made = put(client, "prod", 1)
    assert made == {
        "object": "intervention.alias", "name": "style", "alias": "prod", "version": 1,
        "content_hash": make_set(0).content_hash, "previous": None, "history": None,
    }  # fmt: skip
    for fields in ({"model": "style@prod"}, {"intervention": "style@prod"}, {"model": "base:style@prod"},
                   {"intervention": {"name": "style", "version": "prod", "scale": 0.5}}):  # fmt: skip
        answer = client.post("/v1/completions", json={"prompt": "abc", **fields}).json()
        assert [(one["name"], one["version"]) for one in answer["intervention"]] == [("style", 1)]
    assert put(client, "prod", make_set(1).content_hash)["previous"] == 1
    answer = client.post("/v1/completions", json={"prompt": "abc", "model": "style@prod"}).json()
    assert answer["intervention"][0]["version"] == 2
    assert engine.submitted[-1].interventions[0].content_hash == make_set(1).fold().content_hash


def test_alias_is_a_version_on_every_route(client: TestClient) -> None:
    put(client, "prod", 1)
    assert client.get(f"{URL}@prod").json()["version"] == 1
    shown = client.get(URL, params={"version": "prod"}).json()
    assert (shown["version"], shown["aliases"]) == (1, ["prod"])
    assert client.get(f"{URL}/download", params={"version": "prod"}).content == dumps(make_set(0))
    assert client.get("/v1/models/style@prod").json()["id"] == "style@prod"
    assert [one["aliases"] for one in client.get(f"{URL}/versions").json()["data"]] == [["prod"], []]


def test_route_of_a_task_follows_an_alias(client: TestClient) -> None:
    put(client, "prod", 1)
    route = {"targets": [{"intervention": "style@prod"}]}
    assert client.put("/v1/routes/greet", json=route).status_code == 200
    versions = []
    for version in (1, 2):
        put(client, "prod", version)
        answer = client.post("/v1/completions", json={"prompt": "abc", "task": "greet"}).json()
        versions.append(answer["intervention"][0]["version"])
    assert versions == [1, 2]


def test_one_alias_is_promoted_to_another(client: TestClient) -> None:
    put(client, "prod", 1)
    put(client, "staging", 2)
    moved = put(client, "prod", "staging")
    assert (moved["version"], moved["previous"]) == (2, 1)
    listed = client.get(f"{URL}/aliases").json()["data"]
    assert [(one["alias"], one["version"]) for one in listed] == [("prod", 2), ("staging", 2)]


def test_rollback_goes_back_step_by_step(client: TestClient) -> None:
    client.post("/v1/interventions", params={"name": "style"}, content=dumps(make_set(2)))
    for version in (1, 3, 2, 2):  # the last one moves nothing
        put(client, "prod", version)
    history = client.get(f"{URL}/aliases/prod").json()["history"]
    assert [move["version"] for move in history] == [2, 3, 1]
    steps = [client.post(f"{URL}/aliases/prod/rollback").json() for _ in range(2)]
    assert [(step["version"], step["previous"]) for step in steps] == [(3, 2), (1, 3)]
    assert client.get(f"{URL}@prod").json()["version"] == 1
    refused = client.post(f"{URL}/aliases/prod/rollback")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "intervention_conflict")
    assert client.get(f"{URL}@prod").json()["version"] == 1


def test_version_that_an_alias_names_is_kept(client: TestClient) -> None:
    put(client, "prod", 1)
    for params in ({"version": "1"}, {"version": "1", "purge": "true"}):
        refused = client.delete(URL, params=params)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "intervention_conflict")
        assert "prod" in refused.json()["error"]["message"]
    assert client.get(f"{URL}@prod").json()["version"] == 1
    assert client.delete(f"{URL}/aliases/prod").json()["deleted"] is True
    assert client.delete(URL, params={"version": "1"}).status_code == 200


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/aliases/gone", "GET"),
        ("/aliases/gone", "DELETE"),
        ("/aliases/gone/rollback", "POST"),
        ("@gone", "GET"),
        ("?version=gone", "GET"),
    ],
)
def test_alias_that_is_not_there_is_a_404(client: TestClient, path: str, method: str) -> None:
    response = client.request(method, f"{URL}{path}")
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "intervention_not_found")
    assert "gone" in error["message"]


@pytest.mark.parametrize("alias", ["3", "sha256:0123456789ab", "Prod", "a b", "x" * 65, "con", "a%0ab"])
def test_alias_that_is_no_name_is_a_400(client: TestClient, alias: str) -> None:
    response = client.put(f"{URL}/aliases/{alias}", json={"version": 1})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_intervention_name")
    assert client.get(f"{URL}/aliases").json()["data"] == []


@pytest.mark.parametrize(
    ("version", "status"),
    [(9, 404), ("nothing", 404), ("sha256:000000000000", 404), ("A b", 400), (0, 400), (True, 400), ("", 400)],
)
def test_alias_of_nothing_is_refused(client: TestClient, version: Any, status: int) -> None:
    put(client, "prod", version, status)
    assert client.get(f"{URL}/aliases").json()["data"] == []


def test_deleted_alias_forgets_its_history(client: TestClient) -> None:
    put(client, "prod", 1)
    put(client, "prod", 2)
    client.delete(f"{URL}/aliases/prod")
    put(client, "prod", 2)
    assert client.post(f"{URL}/aliases/prod/rollback").status_code == 409


def test_deleted_name_keeps_its_aliases_until_it_is_purged(make_client: Any) -> None:
    client = make_client(retention_s=1000.0)
    client.post("/v1/interventions", params={"name": "style"}, content=dumps(make_set(0)))
    put(client, "prod", 1)
    client.delete(URL)
    assert client.get(f"{URL}@prod").status_code == 404
    client.post("/v1/interventions", params={"name": "style"}, content=dumps(make_set(1)))
    assert client.get(f"{URL}@prod").status_code == 404
    (alias,) = client.get(f"{URL}/aliases").json()["data"]
    assert (alias["version"], alias["content_hash"]) == (1, "")
    client.post(f"{URL}/restore", params={"version": "1"})
    assert client.get(f"{URL}@prod").json()["version"] == 1
    client.delete(URL, params={"purge": "true"})
    client.post("/v1/interventions", params={"name": "style"}, content=dumps(make_set(2)))
    assert client.get(f"{URL}/aliases").json()["data"] == []


def test_granted_tenants_follow_the_owners_alias_and_can_not_move_it(make_client: Any) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    client: TestClient = make_client(directory=directory)
    for name in ("acme", "friend"):
        directory.create_tenant(name)

    def key(tenant: str) -> dict[str, str]:
        return {"authorization": f"Bearer {directory.create_key(tenant, ('infer', 'upload'))[1].text}"}

    owner, friend = key("acme"), key("friend")
    for seed in (0, 1):
        client.post("/v1/interventions", params={"name": "style"}, content=dumps(make_set(seed)), headers=owner)
    client.put(f"{URL}/aliases/prod", json={"version": 1}, headers=owner)
    client.put(f"{URL}/grants/friend", headers=owner)
    body = {"prompt": "a", "max_tokens": 1, "model": "acme/style@prod"}
    assert client.post("/v1/completions", json=body, headers=friend).json()["intervention"][0]["version"] == 1
    client.put(f"{URL}/aliases/prod", json={"version": 2}, headers=owner)
    assert client.post("/v1/completions", json=body, headers=friend).json()["intervention"][0]["version"] == 2
    assert client.put(f"{URL}/aliases/prod", json={"version": 1}, headers=friend).status_code == 404
    assert client.post(f"{URL}/aliases/prod/rollback", headers=friend).status_code == 404
    listed = client.get(f"{URL}/aliases", params={"tenant": "acme"}, headers=friend).json()["data"]
    assert [(one["name"], one["version"]) for one in listed] == [("acme/style", 2)]
