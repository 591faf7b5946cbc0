"""Every route, called by a tenant for what is another's: the answer is the one for what does not exist.

A route without a case here fails `test_every_route_has_a_case`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_server.api.authentication import PUBLIC_PATHS
from reft_server.fine_tuning.records import FileRecord, JobRecord
from reft_server.fine_tuning.runner import TrainingBase
from reft_server.fine_tuning.service import FineTuning
from reft_server.fine_tuning.settings import FineTuningSettings
from reft_server.registry import Registry
from reft_server.tenants import SCOPES, Scope, TenantDirectory
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]
Call = tuple[str, str, dict[str, Any]]

SECRET, ABSENT = "their-secret", "nobody-s-set"
"""A set of the tenant `victim`, and a name that nobody has, of the same length."""
FILE, NO_FILE = "file-" + "a" * 24, "file-" + "b" * 24
JOB, NO_JOB = "ftjob-" + "a" * 24, "ftjob-" + "b" * 24


@dataclass(frozen=True)
class Case:
    """What to send for one route.

    Args:
        scopes: any one of them is enough for the route; none = it is public.
        call: the request that names a thing; it is sent once for the victim's thing and once for what is not there,
            and both answers must be the same but for the name. None = the route names nothing.
        lists: nothing of the victim's may be in the answer.
    """

    scopes: tuple[Scope, ...]
    call: Callable[[str, str, str], dict[str, Any]] | None = None
    lists: bool = False
    body: dict[str, Any] = field(default_factory=dict)


READ: tuple[Scope, ...] = ("infer", "upload")
CASES: dict[tuple[str, str], Case] = {
    ("POST", "/v1/completions"): Case(("infer",), lambda name, *_: {"prompt": "a", "max_tokens": 1, "model": name}),
    ("POST", "/v1/chat/completions"): Case(
        ("infer",),
        lambda name, *_: {
            "messages": [{"role": "user", "content": "a"}],
            "max_tokens": 1,
            "intervention": name,
        },
    ),
    ("GET", "/v1/models"): Case(READ, lists=True),
    ("GET", "/v1/models/{model:path}"): Case(READ, lambda name, *_: {"path": {"model:path": name}}),
    ("GET", "/v1/interventions"): Case(READ, lists=True),
    ("POST", "/v1/interventions"): Case(("upload",)),
    ("GET", "/v1/interventions/{name}"): Case(READ, lambda name, *_: {"path": {"name": name}}),
    ("GET", "/v1/interventions/{name}/versions"): Case(READ, lambda name, *_: {"path": {"name": name}}),
    ("GET", "/v1/interventions/{name}/download"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("PATCH", "/v1/interventions/{name}"): Case(
        ("upload",), lambda name, *_: {"path": {"name": name}, "description": "mine now"}
    ),
    ("GET", "/v1/interventions/{name}/card"): Case(READ, lambda name, *_: {"path": {"name": name}}),
    ("PUT", "/v1/interventions/{name}/card"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("DELETE", "/v1/interventions/{name}/card"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("POST", "/v1/interventions/{name}/test"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("POST", "/v1/interventions/{name}/compare"): Case(
        ("infer",), lambda name, *_: {"path": {"name": name}, "prompt": "a", "max_tokens": 1}
    ),
    ("POST", "/v1/interventions/{name}/restore"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("GET", "/v1/interventions/{name}/aliases"): Case(READ, lambda name, *_: {"path": {"name": name}}),
    ("GET", "/v1/interventions/{name}/aliases/{alias}"): Case(
        READ, lambda name, *_: {"path": {"name": name, "alias": "prod"}}
    ),
    ("PUT", "/v1/interventions/{name}/aliases/{alias}"): Case(
        ("upload",), lambda name, *_: {"path": {"name": name, "alias": "prod"}, "version": 1}
    ),
    ("POST", "/v1/interventions/{name}/aliases/{alias}/rollback"): Case(
        ("upload",), lambda name, *_: {"path": {"name": name, "alias": "prod"}}
    ),
    ("DELETE", "/v1/interventions/{name}/aliases/{alias}"): Case(
        ("upload",), lambda name, *_: {"path": {"name": name, "alias": "prod"}}
    ),
    ("DELETE", "/v1/interventions/{name}"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("GET", "/v1/interventions/{name}/grants"): Case(("upload",), lambda name, *_: {"path": {"name": name}}),
    ("PUT", "/v1/interventions/{name}/grants/{tenant}"): Case(
        ("upload",), lambda name, *_: {"path": {"name": name, "tenant": "thief"}}
    ),
    ("DELETE", "/v1/interventions/{name}/grants/{tenant}"): Case(
        ("upload",), lambda name, *_: {"path": {"name": name, "tenant": "friend"}}
    ),
    ("GET", "/v1/routes"): Case(READ, lists=True),
    ("GET", "/v1/routes/{task}"): Case(READ, lambda name, *_: {"path": {"task": name}}),
    ("PUT", "/v1/routes/{task}"): Case(
        ("upload",), lambda name, *_: {"path": {"task": name}, "targets": [{"intervention": name}]}
    ),
    ("GET", "/v1/routes/{task}/revisions"): Case(READ, lambda name, *_: {"path": {"task": name}}),
    ("POST", "/v1/routes/{task}/rollback"): Case(("upload",), lambda name, *_: {"path": {"task": name}}),
    ("DELETE", "/v1/routes/{task}"): Case(("upload",), lambda name, *_: {"path": {"task": name}}),
    ("GET", "/v1/files"): Case(("upload",), lists=True),
    ("POST", "/v1/files"): Case(("upload",)),
    ("GET", "/v1/files/{file_id}"): Case(("upload",), lambda _, file, __: {"path": {"file_id": file}}),
    ("GET", "/v1/files/{file_id}/content"): Case(("upload",), lambda _, file, __: {"path": {"file_id": file}}),
    ("DELETE", "/v1/files/{file_id}"): Case(("upload",), lambda _, file, __: {"path": {"file_id": file}}),
    ("GET", "/v1/fine_tuning/jobs"): Case(("upload",), lists=True),
    ("POST", "/v1/fine_tuning/jobs"): Case(
        ("upload",), lambda _, file, __: {"model": "base", "training_file": file, "suffix": "x"}
    ),
    ("GET", "/v1/fine_tuning/jobs/{job_id}"): Case(("upload",), lambda *ids: {"path": {"job_id": ids[2]}}),
    ("POST", "/v1/fine_tuning/jobs/{job_id}/cancel"): Case(("upload",), lambda *ids: {"path": {"job_id": ids[2]}}),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/events"): Case(("upload",), lambda *ids: {"path": {"job_id": ids[2]}}),
    ("GET", "/v1/fine_tuning/jobs/{job_id}/checkpoints"): Case(("upload",), lambda *ids: {"path": {"job_id": ids[2]}}),
    ("POST", "/tokenize"): Case(("infer",), body={"prompt": "a"}),
    ("POST", "/detokenize"): Case(("infer",), body={"tokens": [1]}),
    ("POST", "/v1/admin/tenants"): Case(("admin",), body={"name": "new"}),
    ("GET", "/v1/admin/tenants"): Case(("admin",)),
    ("GET", "/v1/admin/tenants/{tenant}"): Case(("admin",)),
    ("DELETE", "/v1/admin/tenants/{tenant}"): Case(("admin",)),
    ("PUT", "/v1/admin/tenants/{tenant}/limits"): Case(("admin",), body={}),
    ("POST", "/v1/admin/tenants/{tenant}/keys"): Case(("admin",), body={"scopes": ["infer"]}),
    ("GET", "/v1/admin/tenants/{tenant}/keys"): Case(("admin",)),
    ("POST", "/v1/admin/keys/{key_id}/rotate"): Case(("admin",), body={}),
    ("DELETE", "/v1/admin/keys/{key_id}"): Case(("admin",)),
    ("POST", "/v1/admin/reload"): Case(("admin",)),
    ("GET", "/v1/admin/audit"): Case(("admin",)),
    ("GET", "/v1/admin/audit/export"): Case(("admin",)),
    ("GET", "/metrics"): Case(("metrics",)),
    ("GET", "/health"): Case(()),
    ("GET", "/ready"): Case(()),
    ("GET", "/version"): Case(()),
}
GUARDED = [route for route, case in CASES.items() if case.scopes]
NAMING = [route for route, case in CASES.items() if case.call]
LISTING = [route for route, case in CASES.items() if case.lists]


@dataclass(frozen=True)
class World:
    """A server with a victim's things in it, and keys."""

    client: TestClient
    directory: TenantDirectory

    def key(self, tenant: str, *scopes: Scope) -> dict[str, str]:
        """The header of a new key."""
        return {"authorization": f"Bearer {self.directory.create_key(tenant, scopes)[1].text}"}

    def send(self, route: tuple[str, str], headers: dict[str, str], values: dict[str, Any]) -> httpx.Response:
        """Call a route; `path` in `values` fills its path, the rest is the body."""
        method, path = route
        body = {key: value for key, value in values.items() if key != "path"}
        for name, value in values.get("path", {}).items():
            path = path.replace(f"{{{name}}}", value)
        path = path.replace("{", "").replace("}", "")
        response: httpx.Response = self.client.request(method, path, json=body or None, headers=headers)
        return response


@pytest.fixture
def world(make_client: MakeClient, tmp_path: Path) -> World:
    directory = TenantDirectory.in_memory()
    directory.open()
    client = make_client(directory=directory, make_tuning=lambda registry: _tuning(registry, tmp_path))
    for tenant in ("victim", "thief", "friend"):
        directory.create_tenant(tenant)
    world = World(client, directory)
    owner = world.key("victim", "upload")
    uploaded = client.post(f"/v1/interventions?name={SECRET}", content=dumps(make_set(1)), headers=owner)
    assert uploaded.status_code == 201, uploaded.text
    assert client.put(f"/v1/interventions/{SECRET}/grants/friend", headers=owner).status_code == 200
    route = {"targets": [{"intervention": SECRET}]}
    assert client.put(f"/v1/routes/{SECRET}", json=route, headers=owner).status_code == 200
    promoted = client.put(f"/v1/interventions/{SECRET}/aliases/prod", json={"version": 1}, headers=owner)
    assert promoted.status_code == 200, promoted.text
    return world


def _tuning(registry: Registry, folder: Path) -> FineTuning:
    """With a file and a job of the victim's on disk."""
    files, job = folder / "tuning/files", folder / "tuning/jobs" / JOB
    files.mkdir(parents=True)
    job.mkdir(parents=True)
    record = FileRecord(id=FILE, filename=f"{SECRET}.jsonl", num_bytes=1, num_rows=1, owner="victim")
    (files / f"{FILE}.json").write_text(record.model_dump_json())
    (files / f"{FILE}.jsonl").write_text("x")
    options = {"epochs": 1, "batch_size": 1, "lr": 1e-3, "seed": 1}
    running = JobRecord(
        id=JOB,
        owner="victim",
        status="cancelled",
        model="base",
        name=SECRET,
        training_file=FILE,
        method={},
        options=options,
    )
    (job / "job.json").write_text(running.model_dump_json())
    base = TrainingBase(folder, "tiny", "fingerprint", 4)
    return FineTuning(folder / "tuning", FineTuningSettings(), base, registry)


def test_every_route_has_a_case(world: World) -> None:
    served = {
        (method, route.path)
        for route in _api_routes(world.client.app)
        for method in route.methods - {"HEAD", "OPTIONS"}
    }
    assert served == set(CASES)
    assert {path for (_, path), case in CASES.items() if not case.scopes} <= PUBLIC_PATHS


def _api_routes(app: Any) -> list[APIRoute]:
    found, todo = [], list(app.routes)
    while todo:
        route = todo.pop()
        todo += getattr(getattr(route, "original_router", None), "routes", [])
        if isinstance(route, APIRoute):
            found.append(route)
    return found


def test_route_needs_a_key(world: World) -> None:
    for route in GUARDED:
        response = world.send(route, {}, CASES[route].body)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key"), route


def test_route_needs_one_of_its_scopes_and_no_other(world: World) -> None:
    headers = {scope: world.key("", scope) for scope in SCOPES}
    for route in GUARDED:
        case = CASES[route]
        values = case.call(ABSENT, FILE[::-1], JOB[::-1]) if case.call else case.body
        for scope in SCOPES:
            status = world.send(route, headers[scope], values).status_code
            assert (status == 403) == (scope not in case.scopes), (route, scope, status)


def test_what_is_anothers_answers_as_if_it_did_not_exist(world: World) -> None:
    headers = world.key("thief", "infer", "upload")
    for route in NAMING:
        call = CASES[route].call
        assert call is not None
        theirs = world.send(route, headers, call(SECRET, FILE, JOB))
        nothing = world.send(route, headers, call(ABSENT, NO_FILE, NO_JOB))
        assert 400 <= theirs.status_code < 500, (route, theirs.text)
        assert _without_names(theirs) == _without_names(nothing), route


@pytest.mark.parametrize("owner", ["victim", "shared", "thief", "nobody"])
def test_full_name_opens_nothing_that_was_not_granted(world: World, owner: str) -> None:
    headers = world.key("thief", "infer", "upload")
    for method, path in (route for route in NAMING if "{name}" in route[1] or "{model" in route[1]):
        theirs, nothing = (_send_to_owner(world, (method, path), owner, name, headers) for name in (SECRET, ABSENT))
        assert theirs.status_code == 404, (method, path)
        assert _without_names(theirs) == _without_names(nothing), (method, path)


def _send_to_owner(
    world: World, route: tuple[str, str], owner: str, name: str, headers: dict[str, str]
) -> httpx.Response:
    call = CASES[route].call
    assert call is not None
    values = call(name, FILE, JOB)
    path = {"tenant": "thief"} | values.pop("path", {})
    method, url = route
    url = url.replace("{model:path}", f"{owner}/{name}")
    for key, value in path.items():
        url = url.replace(f"{{{key}}}", value)
    response: httpx.Response = world.client.request(
        method, url, params={"tenant": owner}, json=values or None, headers=headers
    )
    return response


def test_list_holds_nothing_of_anothers(world: World) -> None:
    for route in LISTING:
        answer = world.send(route, world.key("thief", "infer", "upload"), {})
        assert answer.status_code == 200, route
        assert not any(one in answer.text for one in (SECRET, FILE, JOB)), route


def test_anothers_task_answers_as_if_it_did_not_exist(world: World) -> None:
    headers = world.key("thief", "infer", "upload")
    body = {"prompt": "a", "max_tokens": 1}
    for path in ("/v1/completions", "/v1/chat/completions"):
        asked = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else body
        theirs, nothing = (
            world.client.post(path, json=asked | {"task": task}, headers=headers) for task in (SECRET, ABSENT)
        )
        assert theirs.status_code == 404
        assert _without_names(theirs) == _without_names(nothing)


def test_route_opens_a_granted_set_for_as_long_as_the_grant_lasts(world: World) -> None:
    owner, friend = world.key("victim", "upload"), world.key("friend", "infer", "upload")
    route = {"targets": [{"intervention": f"victim/{SECRET}"}], "shadow": {"intervention": f"victim/{SECRET}"}}
    assert world.client.put("/v1/routes/mine", json=route, headers=friend).status_code == 200
    ask = {"json": {"prompt": "a", "max_tokens": 1, "task": "mine"}, "headers": friend}
    assert world.client.post("/v1/completions", **ask).headers["x-reft-intervention"] == f"victim/{SECRET}@1"
    world.client.delete(f"/v1/interventions/{SECRET}/grants/friend", headers=owner)
    answer = world.client.post("/v1/completions", **ask)
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "task")
    assert not any(name.startswith("x-reft") for name in answer.headers)


def test_same_name_is_another_set_in_each_namespace(world: World, engine: FakeEngine) -> None:
    headers = world.key("thief", "infer", "upload")
    sent = world.client.post(f"/v1/interventions?name={SECRET}", content=dumps(make_set(2)), headers=headers).json()
    assert (sent["version"], sent["tenant"]) == (1, "thief")
    mine = world.client.get(f"/v1/interventions/{SECRET}", headers=headers).json()
    theirs = world.client.get(f"/v1/interventions/{SECRET}", headers=world.key("victim", "upload")).json()
    assert mine["content_hash"] == sent["content_hash"] != theirs["content_hash"]
    deleted = world.client.delete(f"/v1/interventions/{SECRET}", headers=headers)
    assert deleted.status_code == 200
    assert world.client.get(f"/v1/interventions/{SECRET}", headers=world.key("victim", "upload")).status_code == 200


def test_guessed_content_hash_opens_nothing(world: World) -> None:
    content_hash = world.client.get(f"/v1/interventions/{SECRET}", headers=world.key("victim", "infer")).json()
    headers = world.key("thief", "infer")
    answer = world.client.get(f"/v1/interventions/{SECRET}?version={content_hash['content_hash']}", headers=headers)
    assert answer.status_code == 404


def test_granted_set_is_read_under_its_full_name_only_and_never_written(world: World) -> None:
    headers = world.key("friend", "infer", "upload")
    full = f"victim/{SECRET}"
    assert [info["name"] for info in world.client.get("/v1/interventions", headers=headers).json()["data"]] == [full]
    body = {"prompt": "a", "max_tokens": 1, "model": f"{full}@1"}
    answer = world.client.post("/v1/completions", json=body, headers=headers).json()
    assert [one["name"] for one in answer["intervention"]] == [full]
    shown = world.client.get(f"/v1/interventions/{SECRET}?tenant=victim", headers=headers).json()
    assert (shown["name"], shown["tenant"]) == (full, "victim")
    assert world.client.get(f"/v1/interventions/{SECRET}", headers=headers).status_code == 404
    assert world.client.delete(f"/v1/interventions/{SECRET}?tenant=victim", headers=headers).status_code == 404
    assert world.client.post(f"/v1/interventions?name={full}", content=b"x", headers=headers).status_code == 400
    passed_on = world.client.put(f"/v1/interventions/{SECRET}/grants/thief", headers=headers)
    assert passed_on.status_code == 404


def test_grant_ends_when_it_is_taken_back_or_the_name_is_deleted(world: World) -> None:
    owner, friend = world.key("victim", "upload"), world.key("friend", "infer")
    show = f"/v1/interventions/{SECRET}?tenant=victim"
    assert world.client.get(show, headers=friend).status_code == 200
    world.client.delete(f"/v1/interventions/{SECRET}/grants/friend", headers=owner)
    assert world.client.get(show, headers=friend).status_code == 404
    world.client.put(f"/v1/interventions/{SECRET}/grants/friend", headers=owner)
    world.client.delete(f"/v1/interventions/{SECRET}", headers=owner)
    world.client.post(f"/v1/interventions?name={SECRET}", content=dumps(make_set(3)), headers=owner)
    assert world.client.get(show, headers=friend).status_code == 404
    assert world.client.get(f"/v1/interventions/{SECRET}/grants", headers=owner).json()["data"] == []


def test_grant_to_a_tenant_that_is_not_there_looks_like_any_other(world: World) -> None:
    owner = world.key("victim", "upload")
    answers = [
        world.client.put(f"/v1/interventions/{SECRET}/grants/{name}", headers=owner) for name in ("thief", "ghost")
    ]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].text.replace("thief", "ghost") == answers[1].text


def test_missing_version_of_a_granted_set_names_no_other_set(world: World) -> None:
    owner, friend = world.key("victim", "upload"), world.key("friend", "infer")
    world.client.post(f"/v1/interventions?name={SECRET}-2", content=dumps(make_set(2)), headers=owner)
    answer = world.client.get(f"/v1/interventions/{SECRET}-3?tenant=victim", headers=friend)
    assert answer.status_code == 404
    assert f"{SECRET}-2" not in answer.text


def test_shared_set_is_everybodys_to_read_and_the_operators_to_change(world: World) -> None:
    operator, thief = world.key("", "upload"), world.key("thief", "infer", "upload")
    world.client.post("/v1/interventions?name=style", content=dumps(make_set(4)), headers=operator)
    shown = world.client.get("/v1/interventions/style", headers=thief).json()
    assert (shown["name"], shown["tenant"]) == ("style", "shared")
    assert world.client.delete("/v1/interventions/style", headers=thief).status_code == 404
    own = world.client.post("/v1/interventions?name=style", content=dumps(make_set(5)), headers=thief).json()
    names = [info["name"] for info in world.client.get("/v1/interventions", headers=thief).json()["data"]]
    assert names == ["style", "shared/style"]
    for name, content_hash in (("style", own["content_hash"]), ("shared/style", shown["content_hash"])):
        body = {"prompt": "a", "max_tokens": 1, "intervention": name}
        answer = world.client.post("/v1/completions", json=body, headers=thief).json()
        assert [(one["name"], one["content_hash"]) for one in answer["intervention"]] == [(name, content_hash)]
    seen = world.client.get("/v1/interventions/style", headers=world.key("victim", "infer")).json()
    assert seen["content_hash"] == shown["content_hash"]


def _without_names(response: httpx.Response) -> tuple[int, str, dict[str, str]]:
    text = response.text
    for one in (SECRET, ABSENT, FILE, NO_FILE, JOB, NO_JOB):
        text = text.replace(one, "NAME")
    headers = {k: v for k, v in response.headers.items() if k not in ("x-request-id", "openai-processing-ms")}
    assert isinstance(json.loads(text), dict)
    return response.status_code, text, headers


def test_deleting_by_anothers_full_name_leaves_the_callers_own_set_alone(world: World) -> None:
    headers = world.key("friend", "infer", "upload")
    world.client.post(f"/v1/interventions?name={SECRET}", content=dumps(make_set(2)), headers=headers)
    for owner in ("victim", "shared", "nobody"):
        assert world.client.delete(f"/v1/interventions/{SECRET}?tenant={owner}", headers=headers).status_code == 404
    assert world.client.delete(f"/v1/interventions/{SECRET}?tenant=friend", headers=headers).status_code == 200


def test_metrics_keep_sets_of_one_name_apart(world: World) -> None:
    world.client.post(f"/v1/interventions?name={SECRET}", content=dumps(make_set(2)), headers=world.key("", "upload"))
    for tenant, name in (("victim", SECRET), ("friend", SECRET), ("friend", f"victim/{SECRET}")):
        body = {"prompt": "a", "max_tokens": 1, "model": name}
        assert world.client.post("/v1/completions", json=body, headers=world.key(tenant, "infer")).status_code == 200
    text = world.client.get("/metrics", headers=world.key("", "metrics")).text
    for tenant, intervention in (("friend", SECRET), ("victim", f"victim/{SECRET}"), ("friend", f"victim/{SECRET}")):
        labels = f'intervention="{intervention}",tenant="{tenant}"'
        assert f"reft:intervention_requests_total{{{labels}}} 1.0" in text
