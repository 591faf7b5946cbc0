"""Health, metrics, and the OpenAPI document."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from reft_server.engine.pool import PoolStats
from reft_server.engine.types import EngineStats
from reft_server.errors import EngineStepError
from reft_server.metrics import Metrics
from tests.fakes.engine import FakeEngine

from .test_interventions import complete, upload


def samples(client: TestClient) -> dict[tuple[str, tuple[str, ...]], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, tuple(value for key, value in sample.labels.items() if key != "le")): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_ready_follows_the_engine_and_health_the_process(client: TestClient, engine: FakeEngine) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    engine.ready = False
    response = client.get("/ready")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "retry-after" in response.headers
    assert client.get("/health").status_code == 200
    engine.broken = True
    response = client.get("/health")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


def test_version_is_the_distributions(client: TestClient) -> None:
    assert client.get("/version").json()["version"].count(".") == 2


def test_lifespan_stops_the_engine(make_client: Any, engine: FakeEngine) -> None:
    client = make_client()
    assert engine.is_started
    client.__exit__()
    assert not engine.is_started


def test_metrics_count_what_happened(client: TestClient, engine: FakeEngine) -> None:
    upload(client, "style")
    upload(client, "style", content=b"junk", status=422)
    complete(client)
    complete(client, intervention="style", n=2)
    complete(client, intervention="nothing")
    values = samples(client)
    num_prompt = sum(len(request.prompt_token_ids) for request in engine.submitted)
    assert values["reft:prompt_tokens_total", ()] == num_prompt
    assert values["reft:generation_tokens_total", ()] == num_prompt + 3
    assert values["reft:num_requests_running", ()] == 0
    assert values["reft:num_requests_waiting", ()] == 3
    assert values["reft:kv_cache_usage_perc", ()] == 0.25
    assert values["reft:interventions_resident", ()] == 1
    assert values["reft:intervention_pool_bytes", ()] > 0
    assert values["reft:intervention_pool_hits_total", ()] == 1
    assert values["reft:intervention_pool_misses_total", ()] == 0
    assert values["reft:intervention_pool_evictions_total", ()] == 0
    assert values["reft:request_success_total", ("stop",)] == 3
    assert values["reft:intervention_requests_total", ("base", "default")] == 1
    assert values["reft:intervention_requests_total", ("style", "default")] == 2
    assert values["reft:intervention_uploads_total", ("stored",)] == 1
    assert values["reft:intervention_uploads_total", ("invalid_intervention_file",)] == 1
    assert values["reft:request_errors_total", ("intervention_not_found",)] == 1
    assert values["reft:ready", ()] == 1
    assert values["reft:intervention_resident", ("style",)] == 1
    assert values["reft:intervention_resident", ("other",)] == 0
    assert values["reft:intervention_device_sets", ()] == 0
    assert values["reft:request_queue_time_seconds_count", ()] == 3
    assert values["reft:time_to_first_token_seconds_count", ()] == 3
    assert values["reft:inter_token_latency_seconds_count", ()] == num_prompt
    assert values["reft:e2e_request_latency_seconds_count", ()] == 3


def test_metrics_count_errors_wherever_they_arise(make_client: Any, engine: FakeEngine) -> None:
    client = make_client(max_body_bytes=2000, request_timeout_s=60)
    client.post("/v1/completions", content=b" " * 3000)
    client.get("/nothing")
    engine.fail, engine.fail_after = RuntimeError("before the first token"), 0
    complete(client)
    engine.fail, engine.fail_after = EngineStepError("midway"), 1
    complete(client, prompt="a longer prompt", stream=True)
    values = samples(client)
    codes = ("payload_too_large", "route_not_found", "internal_error", "engine_step_failed")
    assert [values["reft:request_errors_total", (code,)] for code in codes] == [1, 1, 1, 1]


def test_metrics_bound_the_interventions_they_name() -> None:
    metrics = Metrics(EngineStats, PoolStats, max_intervention_labels=2)
    for name in ("a", "b", "c", "d", "a"):
        metrics.count_intervention(name)
    text = metrics.render().decode()
    assert 'reft:intervention_requests_total{intervention="a",tenant="default"} 2.0' in text
    assert 'reft:intervention_requests_total{intervention="other",tenant="default"} 2.0' in text
    assert 'intervention="c"' not in text


def test_openapi_describes_every_route(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/interventions"} <= set(document["paths"])
    for path, method, operation in operations:
        assert operation.get("summary"), (path, method)
        assert operation.get("description"), (path, method)
    assert "examples" in document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert client.get("/docs").status_code == 200


def test_draining_turns_ready_red_and_refuses_all_but_probes(client: TestClient) -> None:
    client.app.state.context.lifecycle.drain()  # type: ignore[attr-defined]
    for method, path in (("GET", "/ready"), ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/nothing")):
        response = client.request(method, path)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_draining")
        assert "retry-after" in response.headers
    for path in ("/health", "/metrics", "/version"):
        assert client.get(path).status_code == 200


def test_metrics_name_resident_sets_as_gateways_read_them(make_client: Any) -> None:
    client = make_client(max_intervention_labels=2)
    for seed, name in enumerate(("a", "b", "c")):
        upload(client, name, seed)
    complete(client, intervention="a")
    families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
    [info] = families["reft:lora_requests_info"].samples
    assert info.labels == {"max_lora": "2", "running_lora_adapters": "a,c", "waiting_lora_adapters": ""}
    assert abs(info.value - time.time()) < 60
    resident = {
        sample.labels["intervention"]: sample.value for sample in families["reft:intervention_resident"].samples
    }
    assert resident == {"a": 1, "c": 1, "other": 1}
    client.delete("/v1/interventions/a")
    assert 'running_lora_adapters="c,b"' in client.get("/metrics").text


def test_metrics_drop_the_series_of_interventions_that_lost_their_place() -> None:
    metrics = Metrics(EngineStats, PoolStats, max_intervention_labels=1)
    metrics.count_intervention("early")
    for _ in range(4096):
        metrics.count_intervention("busy")
    text = metrics.render().decode()
    assert 'intervention="early"' not in text
    assert 'intervention="busy",tenant="default"} 2.0' in text  # from the answer on that ranked it


def test_metrics_say_that_a_server_drains(client: TestClient) -> None:
    client.app.state.context.lifecycle.drain()  # type: ignore[attr-defined]
    assert samples(client)["reft:ready", ()] == 0
