"""Keys over HTTP: who gets in, with which rights, and how keys are made and ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_server.tenants import Scope, TenantDirectory
from tests.fakes.engine import FakeEngine

MakeClient = Callable[..., TestClient]


@pytest.fixture
def directory() -> TenantDirectory:
    directory = TenantDirectory.in_memory()
    directory.open()
    return directory


def key_for(directory: TenantDirectory, tenant: str, *scopes: Scope, **options: Any) -> dict[str, str]:
    """The header of a new key; the tenant is made where it is new."""
    if tenant not in directory.snapshot.tenants:
        directory.create_tenant(tenant)
    return {"authorization": f"Bearer {directory.create_key(tenant, scopes, **options)[1].text}"}


def complete(client: TestClient, headers: dict[str, str], **fields: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": "ab", "max_tokens": 2} | fields, headers=headers)


def test_server_without_keys_lets_everybody_in_with_any_key(make_client: MakeClient) -> None:
    client = make_client()
    for headers in ({}, {"authorization": "Bearer none"}, {"authorization": "Basic xyz"}):
        assert complete(client, headers).status_code == 200


def test_server_without_keys_administers_none(make_client: MakeClient) -> None:
    response = make_client().post("/v1/admin/tenants", json={"name": "acme"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "permission_denied")
    assert "reft-serve keys create" in response.json()["error"]["message"]


def test_server_that_others_reach_lets_nobody_in_while_it_has_no_keys(make_client: MakeClient) -> None:
    assert complete(make_client(open_to="nobody"), {}).status_code == 401


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1"}, 200),
        ({"host": "[::1]:8000"}, 200),
        ({"host": "localhost", "origin": "http://localhost:3000"}, 200),
        ({"host": "localhost", "origin": "http://127.0.0.1:8000"}, 200),
        ({"host": "localhost", "origin": "https://evil.example"}, 403),
        ({"host": "localhost", "origin": "http://localhost.evil.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"host": "localhost", "origin": ""}, 403),
        ({"host": "evil.example:8000"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "[127.0.0.1"}, 403),
        ({"host": "10.0.0.1:8000"}, 403),
    ],
)
def test_local_server_without_keys_refuses_other_sites_pages(
    headers: dict[str, str], status: int, make_client: MakeClient
) -> None:
    response = complete(make_client(open_to="local"), headers)
    assert response.status_code == status
    assert status == 200 or "http://127.0.0.1" in response.json()["error"]["message"]


def test_key_opens_a_local_server_to_pages(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory, open_to="local")
    key = key_for(directory, "acme", "infer")
    assert complete(client, {"host": "llm.example", "origin": "https://app.example"} | key).status_code == 200


def test_first_key_closes_the_server(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    assert complete(client, {}).status_code == 200
    headers = key_for(directory, "acme", "infer")
    assert complete(client, {}).status_code == 401
    assert complete(client, headers).status_code == 200


def test_server_stays_closed_when_its_only_key_is_revoked(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    headers = key_for(directory, "acme", "infer")
    directory.revoke_key(next(iter(directory.snapshot.keys)))
    assert complete(client, headers).status_code == 401
    assert complete(client, {}).status_code == 401


@pytest.mark.parametrize(
    "value",
    [None, "", "Bearer", "Bearer ", "Bearer none", "Basic {key}", "{key}", "Bearer {key}x", "Bearer {key} {key}"],
)
def test_request_without_a_valid_key_is_refused_before_its_body(
    make_client: MakeClient, directory: TenantDirectory, engine: FakeEngine, value: str | None
) -> None:
    client = make_client(directory=directory, max_body_bytes=10)
    key = key_for(directory, "acme", "infer")["authorization"].removeprefix("Bearer ")
    headers = {} if value is None else {"authorization": value.format(key=key)}
    response = client.post("/v1/completions", content=b"x" * 100, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert key not in response.text
    assert engine.submitted == []


def test_two_authorization_headers_are_refused(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    headers = [("authorization", key_for(directory, tenant, "infer")["authorization"]) for tenant in ("acme", "bank")]
    assert client.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize("kind", ["Bearer", "bearer", "BEARER"])
def test_kind_of_the_header_has_no_case(make_client: MakeClient, directory: TenantDirectory, kind: str) -> None:
    client = make_client(directory=directory)
    value = key_for(directory, "acme", "infer")["authorization"].replace("Bearer", kind)
    assert client.get("/v1/models", headers={"authorization": value}).status_code == 200


def test_expired_and_foreign_keys_answer_alike(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    headers = key_for(directory, "acme", "infer", expires_at=time.time() + 0.05)
    time.sleep(0.06)
    expired, unknown = (
        complete(client, headers),
        complete(client, {"authorization": f"Bearer reft-{'0' * 16}-{'A' * 43}"}),
    )
    assert expired.json() == unknown.json()
    assert expired.status_code == unknown.status_code == 401


def test_path_that_does_not_exist_needs_a_key_too(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    headers = key_for(directory, "acme", "infer")
    assert client.get("/v1/nothing").status_code == 401
    assert client.get("/v1/nothing", headers=headers).status_code == 404


def test_tenant_takes_the_place_of_user_and_salts_its_prefixes(
    make_client: MakeClient, directory: TenantDirectory, engine: FakeEngine
) -> None:
    client = make_client(directory=directory)
    headers = key_for(directory, "acme", "infer")
    complete(client, headers, user="somebody", cache_salt="pepper")
    complete(client, headers)
    assert [(one.tenant, one.cache_salt) for one in engine.submitted] == [("acme", "acme/pepper"), ("acme", "acme/")]


def test_shared_prefixes_leave_the_salt_to_the_client(
    make_client: MakeClient, directory: TenantDirectory, engine: FakeEngine
) -> None:
    client = make_client(directory=directory, shares_prefixes=True)
    complete(client, key_for(directory, "acme", "infer"), cache_salt="pepper")
    complete(client, key_for(directory, "bank", "infer"))
    assert [(one.tenant, one.cache_salt) for one in engine.submitted] == [("acme", "pepper"), ("bank", "")]


def test_administration_makes_rotates_and_revokes_keys(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    client.headers.update(key_for(directory, "", "admin"))
    created = client.post("/v1/admin/tenants", json={"name": "acme", "limits": {"max_sets": 3}})
    assert (created.status_code, created.json()["limits"]["max_sets"]) == (201, 3)
    made = client.post("/v1/admin/tenants/acme/keys", json={"scopes": ["infer", "infer"], "expires_in_s": 60}).json()
    assert (made["tenant"], made["scopes"], made["state"]) == ("acme", ["infer"], "active")
    assert complete(client, {"authorization": f"Bearer {made['key']}"}).status_code == 200

    rotated = client.post(f"/v1/admin/keys/{made['id']}/rotate").json()
    assert complete(client, {"authorization": f"Bearer {made['key']}"}).status_code == 401
    assert complete(client, {"authorization": f"Bearer {rotated['key']}"}).status_code == 200

    assert client.delete(f"/v1/admin/keys/{rotated['id']}").json()["state"] == "revoked"
    assert complete(client, {"authorization": f"Bearer {rotated['key']}"}).status_code == 401

    listed = client.get("/v1/admin/tenants/acme/keys")
    assert [key["state"] for key in listed.json()["data"]] == ["expired", "revoked"]
    assert 'key"' not in listed.text.replace("api_key", "")
    assert [tenant["name"] for tenant in client.get("/v1/admin/tenants").json()["data"]] == ["shared", "acme"]


def test_limits_are_replaced_as_a_whole(make_client: MakeClient, directory: TenantDirectory) -> None:
    client = make_client(directory=directory)
    client.headers.update(key_for(directory, "", "admin"))
    client.post("/v1/admin/tenants", json={"name": "acme", "limits": {"max_sets": 3}})
    changed = client.put("/v1/admin/tenants/acme/limits", json={"tokens_per_minute": 7, "max_upload_bytes": None})
    assert changed.json()["limits"]["tokens_per_minute"] == 7
    assert client.get("/v1/admin/tenants/acme").json()["limits"] == changed.json()["limits"]
    assert changed.json()["limits"]["max_sets"] is None


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/admin/tenants", {"name": "shared"}, 400, "invalid_request"),
        ("POST", "/v1/admin/tenants", {"name": "../acme"}, 400, "invalid_request"),
        ("POST", "/v1/admin/tenants", {"name": "acme"}, 409, "tenant_exists"),
        ("POST", "/v1/admin/tenants", {"name": "new", "limits": {"max_sets": -1}}, 400, "invalid_request"),
        ("POST", "/v1/admin/tenants", {"name": "new", "limit": {}}, 400, "invalid_request"),
        ("GET", "/v1/admin/tenants/nobody", None, 404, "tenant_not_found"),
        ("GET", "/v1/admin/tenants/nobody/keys", None, 404, "tenant_not_found"),
        ("PUT", "/v1/admin/tenants/nobody/limits", {}, 404, "tenant_not_found"),
        ("POST", "/v1/admin/tenants/nobody/keys", {"scopes": ["infer"]}, 404, "tenant_not_found"),
        ("POST", "/v1/admin/tenants/acme/keys", {"scopes": []}, 400, "invalid_request"),
        ("POST", "/v1/admin/tenants/acme/keys", {"scopes": ["root"]}, 400, "invalid_request"),
        ("POST", "/v1/admin/tenants/acme/keys", {"scopes": ["admin"]}, 400, "invalid_request"),
        ("POST", "/v1/admin/tenants/acme/keys", {"scopes": ["infer"], "expires_in_s": 0}, 400, "invalid_request"),
        ("POST", "/v1/admin/keys/nothing/rotate", {}, 404, "api_key_not_found"),
        ("DELETE", "/v1/admin/keys/nothing", None, 404, "api_key_not_found"),
    ],
)
def test_administration_refuses_what_can_not_be(
    make_client: MakeClient,
    directory: TenantDirectory,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    status: int,
    code: str,
) -> None:
    client = make_client(directory=directory)
    directory.create_tenant("acme")
    response = client.request(method, path, json=body, headers=key_for(directory, "", "admin"))
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


def test_logs_hold_no_key(
    make_client: MakeClient, directory: TenantDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client = make_client(directory=directory)
    headers = key_for(directory, "acme", "infer")
    key = headers["authorization"].removeprefix("Bearer ")
    complete(client, headers)
    complete(client, {"authorization": f"Bearer {key}x"})
    complete(client, headers, model=key)
    assert key.split("-", 2)[2] not in caplog.text
