"""Every route that changes something leaves its entry in the audit log; a new one fails here until it has a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_server.tenants import Scope, TenantDirectory
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]
Route = tuple[str, str]

UNAUDITED = frozenset(
    {
        *(("POST", path) for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize")),
        ("POST", "/v1/interventions/{name}/test"),
        ("POST", "/v1/interventions/{name}/compare"),
        # Files and jobs are a tenant's work in progress; the set that a job stores has its entry.
        ("POST", "/v1/files"),
        ("DELETE", "/v1/files/{file_id}"),
        ("POST", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"),
    }
)
"""What changes nothing that the log is about."""
ACTIONS: Mapping[Route, str] = MappingProxyType(
    {
        ("POST", "/v1/admin/tenants"): "tenant.create",
        ("PUT", "/v1/admin/tenants/{tenant}/limits"): "tenant.set_limits",
        ("POST", "/v1/admin/tenants/{tenant}/keys"): "key.create",
        ("POST", "/v1/admin/keys/{key_id}/rotate"): "key.rotate",
        ("POST", "/v1/interventions"): "set.upload",
        ("PATCH", "/v1/interventions/{name}"): "set.describe",
        ("PUT", "/v1/interventions/{name}/card"): "set.card",
        ("DELETE", "/v1/interventions/{name}/card"): "set.card",
        ("PUT", "/v1/interventions/{name}/aliases/{alias}"): "alias.set",
        ("POST", "/v1/interventions/{name}/aliases/{alias}/rollback"): "alias.rollback",
        ("DELETE", "/v1/interventions/{name}/aliases/{alias}"): "alias.delete",
        ("PUT", "/v1/interventions/{name}/grants/{tenant}"): "grant.create",
        ("DELETE", "/v1/interventions/{name}/grants/{tenant}"): "grant.delete",
        ("PUT", "/v1/routes/{task}"): "route.put",
        ("POST", "/v1/routes/{task}/rollback"): "route.rollback",
        ("DELETE", "/v1/routes/{task}"): "route.delete",
        ("DELETE", "/v1/interventions/{name}"): "set.delete",
        ("POST", "/v1/interventions/{name}/restore"): "set.restore",
        ("DELETE", "/v1/admin/keys/{key_id}"): "key.revoke",
        ("DELETE", "/v1/admin/tenants/{tenant}"): "tenant.delete",
    }
)
"""In an order in which each has something to change."""
NEEDS_A_FILE = frozenset({("POST", "/v1/admin/reload")})
"""Tested with a settings file, in tests/integration/test_settings_reload.py."""


def changing_routes(app: Any) -> set[Route]:
    """All but those that only read."""
    found, todo = set(), list(app.routes)
    while todo:
        route = todo.pop()
        todo += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, APIRoute):
            found |= {(method, route.path) for method in route.methods - {"GET", "HEAD", "OPTIONS"}}
    return found


def test_every_route_that_changes_something_has_a_case(make_client: MakeClient) -> None:
    assert changing_routes(make_client().app) == {*ACTIONS, *UNAUDITED, *NEEDS_A_FILE}


def test_every_change_leaves_its_entry_with_the_key_that_made_it(make_client: MakeClient) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    for tenant in ("acme", "globex"):
        directory.create_tenant(tenant)
    client = make_client(directory=directory, retention_s=60.0)

    def key(tenant: str, *scopes: Scope) -> tuple[dict[str, str], str]:
        made, born = directory.create_key(tenant, scopes)
        return {"authorization": f"Bearer {born.text}"}, made.key_id

    operator, acme = key("", "admin"), key("acme", "infer", "upload")
    for seed in (1, 2):
        client.post("/v1/interventions?name=style", content=dumps(make_set(seed)), headers=acme[0])
    for version in (1, 2):
        client.put("/v1/interventions/style/aliases/prod", json={"version": version}, headers=acme[0])
    route = {"targets": [{"intervention": "style"}]}
    client.put("/v1/routes/greet", json=route, headers=acme[0])
    values = {"name": "style", "alias": "prod", "task": "greet", "tenant": "globex"}
    bodies: dict[Route, dict[str, Any]] = {
        ("POST", "/v1/admin/tenants"): {"json": {"name": "new"}},
        ("PUT", "/v1/admin/tenants/{tenant}/limits"): {"json": {"max_sets": 3}},
        ("POST", "/v1/admin/tenants/{tenant}/keys"): {"json": {"scopes": ["infer"]}},
        ("POST", "/v1/interventions"): {"params": {"name": "style"}, "content": dumps(make_set(3))},
        ("PATCH", "/v1/interventions/{name}"): {"json": {"description": "d", "labels": {"team": "a"}}},
        ("PUT", "/v1/interventions/{name}/card"): {"content": b"# Card", "headers": {"content-type": "text/markdown"}},
        ("PUT", "/v1/interventions/{name}/aliases/{alias}"): {"json": {"version": 3}},
        ("PUT", "/v1/routes/{task}"): {"json": route},
    }
    for (method, path), action in ACTIONS.items():
        headers, key_id = operator if path.startswith("/v1/admin") else acme
        options = bodies.get((method, path), {})
        all_headers = {**headers, **options.get("headers", {})}
        newest = client.get("/v1/admin/audit?limit=1", headers=operator[0]).json()["last_id"]
        answer = client.request(method, path.format(**values), **{**options, "headers": all_headers})
        assert answer.is_success, (method, path, answer.text)
        if path.endswith(("/keys", "/rotate")):
            values["key_id"] = answer.json()["id"]
        query = f"after={newest}&order=asc&action={action}"
        entries = client.get(f"/v1/admin/audit?{query}", headers=operator[0]).json()["data"]
        assert [one["key_id"] for one in entries] == [key_id], (method, path)
