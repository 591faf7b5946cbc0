"""`/v1/routes`, and requests that name a task."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_client.types import CompletionRequest
from reft_interventions import dumps
from reft_interventions.errors import InterventionNotFoundError
from reft_server.api import routed
from reft_server.api.context import ApiContext
from reft_server.engine.types import GenerationRequest
from reft_server.errors import EngineStepError
from reft_server.tenants import SCOPES, TenantDirectory
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]
TASK = {"prompt": "abc", "max_tokens": 4, "task": "support"}


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A server without keys, with the sets `one`, `two` and `three`."""
    client = make_client()
    for seed, name in enumerate(("one", "two", "three")):
        assert client.post(f"/v1/interventions?name={name}", content=dumps(make_set(seed))).status_code == 201
    return client


def put(client: TestClient, task: str, *targets: object, **fields: object) -> dict[str, Any]:
    """Set a route whose targets have the weight 1."""
    body = {"targets": [{"intervention": target} for target in targets], **fields}
    answer = client.put(f"/v1/routes/{task}", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ask(client: TestClient, **fields: object) -> Any:
    return client.post("/v1/completions", json=TASK | fields)


def error_of(answer: Any) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["param"]


def context_of(client: TestClient) -> ApiContext:
    context: ApiContext = client.app.state.context  # type: ignore[attr-defined]
    return context


def after_shadows(client: TestClient) -> str:
    """The metrics, once no shadow runs."""
    assert client.portal is not None
    client.portal.call(context_of(client).shadows.wait)
    return client.get("/metrics").text


def test_task_is_answered_by_its_route_and_headers_and_body_say_by_what(client: TestClient) -> None:
    put(client, "support", ["one@1", {"name": "two", "scale": 0.5}])
    answer = ask(client)
    body = answer.json()
    applied = body["intervention"]
    assert [(one["name"], one["version"], one["scale"]) for one in applied] == [("one", 1, 1.0), ("two", 1, 0.5)]
    assert body["route"] == {"task": "support", "revision": 1, "tenant": "shared"}
    assert answer.headers["x-reft-route"] == "support@1"
    assert answer.headers["x-reft-intervention"] == "one@1, two@1"
    assert answer.headers["x-reft-content-hash"] == ", ".join(one["content_hash"] for one in applied)


def test_stream_of_a_task_says_by_what_too(client: TestClient) -> None:
    put(client, "support", "one")
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "stream": True, "task": "support"}
    for path, body in (("/v1/completions", TASK | {"stream": True}), ("/v1/chat/completions", chat)):
        answer = client.post(path, json=body)
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert events[0]["route"]["revision"] == 1
        assert [one["content_hash"] for one in events[0]["intervention"]] == [answer.headers["x-reft-content-hash"]]
        assert (answer.headers["x-reft-intervention"], answer.headers["x-reft-route"]) == ("one@1", "support@1")
        assert not any("route" in event or "intervention" in event for event in events[1:])


def test_request_without_a_task_has_no_route_and_says_what_answered_it(client: TestClient) -> None:
    put(client, "default", "one")
    answer = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1})
    assert not {"route", "intervention"} & set(answer.json())
    assert not any(name.startswith("x-reft-") for name in answer.headers)
    named = client.post("/v1/completions", json={"prompt": "abc", "max_tokens": 1, "model": "two"})
    assert named.headers["x-reft-intervention"] == "two@1"
    assert "x-reft-route" not in named.headers


def test_route_to_the_base_model_applies_nothing(client: TestClient) -> None:
    put(client, "support", None)
    answer = ask(client, model="base")
    assert answer.json()["route"]["task"] == "support"
    assert "intervention" not in answer.json()
    assert "x-reft-intervention" not in answer.headers


def test_header_names_the_task_and_the_key(client: TestClient) -> None:
    put(client, "support", "one", "two", "three")
    body = {"prompt": "abc", "max_tokens": 1}

    def name_of(headers: dict[str, str], **fields: object) -> str:
        answer = client.post("/v1/completions", json=body | fields, headers=headers)
        name: str = answer.json()["intervention"][0]["name"]
        return name

    by_header = [name_of({"X-Reft-Task": "support", "X-Reft-Routing-Key": f"key-{n}"}) for n in range(8)]
    assert set(by_header) > {by_header[0]}
    for fields in ("routing_key", "user"):
        assert [name_of({}, task="support", **{fields: f"key-{n}"}) for n in range(8)] == by_header
    assert [name_of({}, task="support", user="x", routing_key=f"key-{n}") for n in range(8)] == by_header


@pytest.mark.parametrize(
    ("fields", "headers", "param"),
    [
        ({"intervention": "one"}, {}, "task"),
        ({"model": "one"}, {}, "task"),
        ({}, {"X-Reft-Task": "other"}, "task"),
        ({"routing_key": "a"}, {"X-Reft-Routing-Key": "b"}, "routing_key"),
    ],
)
def test_contradictions_are_refused(
    client: TestClient, fields: dict[str, str], headers: dict[str, str], param: str
) -> None:
    put(client, "support", "one")
    answer = client.post("/v1/completions", json=TASK | fields, headers=headers)
    assert error_of(answer) == (400, "invalid_request", param)


def test_unknown_task_is_an_error_or_gets_the_default(client: TestClient) -> None:
    assert error_of(ask(client, task="\nnot a name")) == (404, "task_not_found", "task")
    put(client, "default", "one")
    answer = ask(client, task="\nnot a name")
    assert answer.headers["x-reft-route"] == "default@1"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"targets": []}, (400, "invalid_request", "targets")),
        ({"targets": [{"intervention": "one", "weight": 0}]}, (400, "invalid_request", None)),
        ({"targets": [{"intervention": "one", "weight": -1}]}, (400, "invalid_request", "targets[0].weight")),
        ({"targets": [{"intervention": "one", "wieght": 1}]}, (400, "invalid_request", "targets[0].wieght")),
        ({"targets": [{"intervention": "nope"}]}, (404, "intervention_not_found", "targets[0].intervention")),
        ({"targets": [{"intervention": "one@9"}]}, (404, "intervention_not_found", "targets[0].intervention")),
        (
            {"targets": [{"intervention": "one"}], "shadow": {"intervention": "nope"}},
            (404, "intervention_not_found", "shadow.intervention"),
        ),
        (
            {"targets": [{"intervention": "one"}], "shadow": {"intervention": "two", "fraction": 0}},
            (400, "invalid_request", "shadow.fraction"),
        ),
    ],
)
def test_route_that_can_not_work_is_refused(
    client: TestClient, body: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    assert error_of(client.put("/v1/routes/support", json=body)) == expected
    assert client.get("/v1/routes").json()["data"] == []


def test_routes_are_listed_shown_rolled_back_and_deleted(client: TestClient) -> None:
    put(client, "support", "one", description="first")
    second = put(client, "support", "two", "three", shadow={"intervention": "one", "fraction": 0.5})
    assert (second["revision"], second["previous"], second["is_active"]) == (2, 1, True)
    assert client.get("/v1/routes/support").json() == second
    assert client.get("/v1/routes").json()["data"] == [second]
    back = client.post("/v1/routes/support/rollback").json()
    assert (back["revision"], back["description"], back["targets"][0]["intervention"]) == (1, "first", "one")
    assert ask(client).headers["x-reft-intervention"] == "one@1"
    revisions = client.get("/v1/routes/support/revisions").json()["data"]
    assert [(one["revision"], one["is_active"]) for one in revisions] == [(2, False), (1, True)]
    assert error_of(client.post("/v1/routes/support/rollback")) == (404, "task_not_found", "revision")
    forward = client.post("/v1/routes/support/rollback", json={"revision": 2}).json()
    assert forward == second
    assert client.delete("/v1/routes/support").json() == {
        "object": "route.deleted",
        "task": "support",
        "deleted": True,
    }
    assert error_of(client.delete("/v1/routes/support")) == (404, "task_not_found", "task")
    assert error_of(ask(client)) == (404, "task_not_found", "task")


def test_rollback_to_a_set_that_is_gone_is_refused(client: TestClient) -> None:
    put(client, "support", "one")
    put(client, "support", "two")
    client.delete("/v1/interventions/one")
    assert error_of(client.post("/v1/routes/support/rollback")) == (
        404,
        "intervention_not_found",
        "targets[0].intervention",
    )
    assert ask(client).headers["x-reft-intervention"] == "two@1"


def test_shown_route_can_be_sent_back(client: TestClient) -> None:
    put(client, "support", {"name": "one", "version": 1, "scale": 2.0}, shadow={"intervention": ["two"]})
    shown = client.get("/v1/routes/support").json()
    again = client.put("/v1/routes/support", json={key: shown[key] for key in ("targets", "shadow", "description")})
    assert again.status_code == 200
    assert again.json()["targets"] == shown["targets"]


def test_task_whose_set_was_deleted_says_that_the_task_is_at_fault(client: TestClient) -> None:
    put(client, "support", "one")
    client.delete("/v1/interventions/one")
    assert error_of(ask(client)) == (404, "intervention_not_found", "task")


def test_request_takes_the_new_route_when_the_old_one_s_set_is_deleted_under_it(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the route and the look at the store another process changes both."""
    put(client, "support", "one")
    apply_interventions, num_calls = routed.apply_interventions, 0

    async def change_first(*args: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 1:
            route = context_of(client).routes.get("", "support")
            definition = route.definition.model_validate({"targets": [{"intervention": "two"}]})
            await asyncio.to_thread(context_of(client).routes.put, "", "support", definition)
            raise InterventionNotFoundError("gone")
        return await apply_interventions(*args)

    monkeypatch.setattr(routed, "apply_interventions", change_first)
    answer = ask(client)
    assert (answer.status_code, answer.headers["x-reft-route"]) == (200, "support@2")


def test_shared_route_means_the_shared_sets_whatever_a_tenant_has(make_client: MakeClient) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    client = make_client(directory=directory)
    directory.create_tenant("acme")
    operator, acme = (
        {"authorization": f"Bearer {directory.create_key(tenant, scopes)[1].text}"}
        for tenant, scopes in (("", SCOPES), ("acme", ("infer", "upload")))
    )
    for seed, headers in enumerate((operator, acme)):
        client.post("/v1/interventions?name=style", content=dumps(make_set(seed)), headers=headers)
    shared = client.get("/v1/interventions/style", headers=operator).json()["content_hash"]
    route = {"targets": [{"intervention": "style"}], "shadow": {"intervention": "style"}}
    assert client.put("/v1/routes/support", json=route, headers=operator).status_code == 200
    answer = client.post("/v1/completions", json=TASK, headers=acme)
    assert answer.headers["x-reft-content-hash"] == shared
    assert answer.headers["x-reft-intervention"] == "shared/style@1"
    assert answer.headers["x-reft-route"] == "shared/support@1"
    assert error_of(client.delete("/v1/routes/support", headers=acme)) == (404, "task_not_found", "task")
    client.put("/v1/routes/support", json=route, headers=acme)
    own = client.post("/v1/completions", json=TASK, headers=acme)
    assert (own.headers["x-reft-intervention"], own.headers["x-reft-route"]) == ("style@1", "support@1")
    assert own.headers["x-reft-content-hash"] != shared


def test_metrics_count_requests_by_route(client: TestClient) -> None:
    put(client, "support", "one")
    ask(client)
    assert 'reft:route_requests_total{route="support",tenant="default"} 1.0' in client.get("/metrics").text


@pytest.fixture
def idle(engine: FakeEngine) -> FakeEngine:
    engine.num_waiting = 0
    return engine


def edited_differently(request: GenerationRequest) -> list[int]:
    """Another answer for each number of interventions."""
    return [5 + len(request.interventions)] * 3


@pytest.mark.parametrize(("shadow", "outcome"), [("two", "same"), (["two", "three"], "different")])
def test_shadow_runs_after_the_answer_and_is_compared(
    client: TestClient, idle: FakeEngine, shadow: object, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    idle.script = edited_differently
    put(client, "support", "one", shadow={"intervention": shadow})
    with caplog.at_level(logging.INFO):
        answers = [ask(client), client.post("/v1/completions", json=TASK | {"stream": True})]
        text = after_shadows(client)
    assert f'reft:shadow_requests_total{{outcome="{outcome}",route="support"}}' in text
    assert answers[0].json()["intervention"][0]["name"] == "one"
    assert "two" not in answers[0].text + answers[1].text
    fields = next(record.fields for record in caplog.records if record.message == "shadow_ended")
    assert fields["outcome"] == outcome
    assert fields["response_id"] == answers[0].json()["id"]
    assert (fields["answer_hash"] == fields["shadow_hash"]) == (outcome == "same")
    assert fields["same_tokens"] == (4 if outcome == "same" else 0)
    assert [len(request.interventions) for request in idle.submitted[:2]] == [1, 1 if outcome == "same" else 2]
    assert idle.submitted[1].priority > idle.submitted[0].priority


def test_shadow_never_holds_the_answer_up_nor_fails_it(client: TestClient, idle: FakeEngine) -> None:
    put(client, "support", "one", shadow={"intervention": "two"})
    idle.refuse, idle.refuse_at = EngineStepError("broken"), 1
    assert ask(client).status_code == 200
    assert 'reft:shadow_requests_total{outcome="failed",route="support"} 1.0' in after_shadows(client)
    idle.refuse = None
    client.delete("/v1/interventions/two")
    assert ask(client).status_code == 200
    assert 'reft:shadow_requests_total{outcome="failed",route="support"} 2.0' in after_shadows(client)


def test_shadow_is_dropped_when_others_wait_or_one_runs_already(client: TestClient, engine: FakeEngine) -> None:
    put(client, "support", "one", shadow={"intervention": "two"})
    assert ask(client).status_code == 200
    assert len(engine.submitted) == 1, "the fake engine says that others wait"
    engine.num_waiting = 0
    idle_slots = context_of(client).shadows
    assert client.portal is not None
    client.portal.call(_occupy, idle_slots)
    assert ask(client).status_code == 200
    assert len(engine.submitted) == 2
    assert 'reft:shadow_requests_total{outcome="dropped",route="support"} 2.0' in client.get("/metrics").text


async def _occupy(slots: Any) -> None:
    slots.start("", asyncio.sleep(3600))


def test_shadow_of_a_fraction_runs_for_that_share(
    client: TestClient, idle: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(client, "support", "one", shadow={"intervention": "two", "fraction": 0.25})
    draws = iter([0.2, 0.3, 0.9, 0.24])
    monkeypatch.setattr(routed.random, "random", lambda: next(draws))
    for _ in range(4):
        ask(client)
        after_shadows(client)
    assert len(idle.submitted) == 4 + 2


def test_shadow_stops_where_the_answer_would(client: TestClient, idle: FakeEngine) -> None:
    put(client, "support", "one", shadow={"intervention": "two"})
    assert ask(client, prompt="abcdef", max_tokens=6, stop="c").json()["choices"][0]["text"] == "ab"
    assert 'reft:shadow_requests_total{outcome="same",route="support"} 1.0' in after_shadows(client)


def test_no_shadow_runs_where_they_are_switched_off(make_client: MakeClient, idle: FakeEngine) -> None:
    client = make_client(max_shadow_requests=0)
    client.post("/v1/interventions?name=one", content=dumps(make_set(1)))
    put(client, "support", "one", shadow={"intervention": "one"})
    ask(client)
    assert len(idle.submitted) == 1


def test_headers_leave_a_body_that_says_the_same_alone() -> None:
    body = CompletionRequest.model_validate(TASK)
    assert routed.RoutingHeaders("support", None).apply(body).task == "support"
    assert routed.RoutingHeaders(None, None).apply(body) is body


def test_route_to_an_alias_follows_it(client: TestClient) -> None:
    client.post("/v1/interventions?name=one", content=dumps(make_set(9)))
    assert client.put("/v1/interventions/one/aliases/prod", json={"version": 1}).status_code == 200
    put(client, "support", "one@prod")
    assert ask(client).headers["x-reft-intervention"] == "one@1"
    assert client.put("/v1/interventions/one/aliases/prod", json={"version": 2}).status_code == 200
    assert ask(client).headers["x-reft-intervention"] == "one@2"
    refused = client.put("/v1/routes/support", json={"targets": [{"intervention": "one@stable"}]})
    assert error_of(refused) == (404, "intervention_not_found", "targets[0].intervention")


def test_route_labels_of_metrics_are_bounded(make_client: MakeClient) -> None:
    client = make_client(max_intervention_labels=2)
    for number in range(5):
        put(client, f"task-{number}", None)
        ask(client, task=f"task-{number}")
    text = client.get("/metrics").text
    labels = [line.split('"')[1] for line in text.splitlines() if line.startswith("reft:route_requests_total{")]
    assert labels == ["task-0", "task-1", "other"]


def test_shadow_runs_for_no_answer_that_was_not_given(client: TestClient, idle: FakeEngine) -> None:
    put(client, "support", "one", shadow={"intervention": "two"})
    idle.fail, idle.fail_after = EngineStepError("broken"), 2
    assert ask(client).status_code == 500
    assert "error" in client.post("/v1/completions", json=TASK | {"stream": True}).text
    after_shadows(client)
    assert len(idle.submitted) == 2
