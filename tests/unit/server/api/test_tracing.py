"""Spans follow a request from HTTP to its last step, and hold no content."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from starlette.testclient import TestClient

from reft_server.tracing import Tracing
from tests.fakes.engine import FakeEngine

TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "hunter2"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(make_client: Any, exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return make_client(tracing=Tracing(provider))


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("is_stream", [False, True])
def test_request_has_its_phases_under_the_callers_span(
    traced: TestClient, exporter: InMemorySpanExporter, is_stream: bool
) -> None:
    headers = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "x-request-id": "mine-1"}
    traced.post("/v1/completions", json={"prompt": "abc", "stream": is_stream}, headers=headers)
    spans = by_name(exporter)
    request = spans.pop("POST /v1/completions")
    assert list(spans) == ["queue", "prefill", "decode"]
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert f"{request.parent.span_id:016x}" == PARENT_ID
    assert {span.parent.span_id for span in spans.values()} == {request.context.span_id}
    assert spans["queue"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time
    assert spans["decode"].end_time <= request.end_time
    assert all(span.start_time <= span.end_time for span in spans.values())
    assert spans["decode"].attributes["gen_ai.usage.output_tokens"] == 4
    expected = {"http.response.status_code": 200, "reft.request_id": "mine-1", "reft.tenant": "default"}
    assert expected.items() <= request.attributes.items()


def test_every_choice_has_phases_and_probes_have_no_span(traced: TestClient, exporter: InMemorySpanExporter) -> None:
    traced.post("/v1/completions", json={"prompt": "abc", "n": 3})
    for path in ("/health", "/ready", "/metrics"):
        traced.get(path)
    spans = exporter.get_finished_spans()
    assert sorted(span.attributes["reft.choice"] for span in spans if span.name == "decode") == [0, 1, 2]
    assert len(spans) == 10


@pytest.mark.parametrize("traceparent", ["", "junk", f"00-{'0' * 32}-{PARENT_ID}-01", f"ff-{TRACE_ID}-{PARENT_ID}"])
def test_odd_traceparent_starts_a_new_trace(
    traced: TestClient, exporter: InMemorySpanExporter, traceparent: str
) -> None:
    traced.get("/v1/models", headers={"traceparent": traceparent})
    [span] = exporter.get_finished_spans()
    assert span.parent is None


def test_spans_hold_no_content_when_requests_fail(
    traced: TestClient, engine: FakeEngine, exporter: InMemorySpanExporter
) -> None:
    engine.fail = RuntimeError(SECRET)
    traced.post("/v1/completions", json={"prompt": SECRET})
    traced.post("/v1/completions", json={"prompt": SECRET, "model": SECRET})
    traced.get(f"/v1/interventions/{SECRET}")
    traced.request(SECRET.upper(), f"/{SECRET}")
    failed, *others = exporter.get_finished_spans()
    assert failed.status.status_code == StatusCode.ERROR
    assert failed.attributes["reft.error"] == "internal_error"
    assert len(others) == 3
    assert SECRET not in " ".join(span.to_json() for span in (failed, *others)).lower()


def test_server_without_traces_imports_nothing_of_the_sdk() -> None:
    code = "import sys, reft_server.serving; print(*(name in sys.modules for name in sys.argv[1:]))"
    command = [sys.executable, "-c", code, "opentelemetry.sdk", "reft_server.tracing"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == "False False\n"
