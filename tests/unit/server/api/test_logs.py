"""The log names requests, tenants and hashes, and never what a client sent, whatever happens and at every level."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_server.logging_setup import LogFormat, configure_logging, describe_exception, handle_loop_exception
from reft_server.request_context import current_request
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

SECRET = "hunter2"


def events(captured: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in captured.splitlines()]


def requests_with_secrets(client: TestClient, engine: FakeEngine) -> None:
    """Every route that takes text, on every way that it ends."""
    upload = {"params": {"name": SECRET}, "content": dumps(make_set(0))}
    client.post("/v1/interventions", **upload)
    client.post("/v1/interventions", params={"name": SECRET}, content=SECRET.encode() * 100)
    client.post("/v1/interventions", params={"name": f"../{SECRET}"}, content=b"x")
    chat = {"messages": [{"role": "user", "content": SECRET}]}
    for body in ({}, {"stream": True}, {"intervention": SECRET}, {"intervention": f"{SECRET}!"}, {"model": SECRET}):
        client.post("/v1/completions", json={"prompt": SECRET, **body})
        client.post("/v1/chat/completions", json={**chat, **body})
    for body in ({"temperature": SECRET}, {"stop": [SECRET] * 99}, {SECRET: 1, "n": -1}, {"prompt": {SECRET: 1}}):
        client.post("/v1/completions", json={"prompt": SECRET, **body}, headers={"authorization": SECRET})
    client.post("/v1/completions", content=f'{{"prompt": "{SECRET}'.encode())
    client.post("/v1/tokenize", json={"prompt": SECRET})
    client.post("/tokenize", json={"prompt": SECRET})
    client.request(SECRET.upper(), "/v1/models")
    for path in (f"/{SECRET}", f"/v1/models/{SECRET}", f"/v1/interventions/{SECRET}", f"/v1/models?x={SECRET}"):
        client.get(path, headers={"x-request-id": f"{SECRET} {SECRET}"})
    for fail_after in (0, 1):
        engine.fail, engine.fail_after = RuntimeError(SECRET), fail_after
        client.post("/v1/completions", json={"prompt": SECRET})
        client.post("/v1/completions", json={"prompt": SECRET, "stream": True})
    client.delete(f"/v1/interventions/{SECRET}")


@pytest.mark.parametrize("level", ["debug", "info", "error"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_log_holds_no_content_and_no_names_at_any_level(
    client: TestClient,
    engine: FakeEngine,
    capsys: pytest.CaptureFixture[str],
    restored_logging: None,
    level: str,
    log_format: LogFormat,
) -> None:
    configure_logging(level, log_format)
    requests_with_secrets(client, engine)
    captured = capsys.readouterr()
    assert SECRET not in (captured.out + captured.err).lower()
    assert "RuntimeError" in captured.err
    assert ("request_ended" in captured.err) == (level != "error")
    assert ("intervention_stored" in captured.err) == (level != "error")


def test_log_has_one_line_per_request_with_its_id_tenant_and_end(
    client: TestClient, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    configure_logging("info", "json")
    response = client.post("/v1/completions", json={"prompt": "abc"}, headers={"x-request-id": "mine-1"})
    client.get("/ready")
    client.get("/v1/models/nothing", headers={"x-request-id": "mine-2"})
    first, second = events(capsys.readouterr().err)
    assert first.pop("duration_ms") >= 0
    assert {key: first[key] for key in first if key not in ("time", "logger")} == {
        "level": "info",
        "message": "request_ended",
        "method": "POST",
        "route": "/v1/completions",
        "status": 200,
        "response_id": response.json()["id"],
        "num_choices": 1,
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "request_id": "mine-1",
        "tenant": "default",
    }
    assert (second["route"], second["status"], second["error"]) == ("/v1/models/{model:path}", 404, "model_not_found")
    assert second["request_id"] == "mine-2"


def test_log_line_from_within_a_request_names_it(
    client: TestClient, engine: FakeEngine, capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    configure_logging("error", "text")
    engine.fail = RuntimeError("any")
    client.post("/v1/completions", json={"prompt": "a"}, headers={"x-request-id": "mine-3"})
    line = capsys.readouterr().err.splitlines()[0]
    assert line.endswith("ERROR request_failed request_id=mine-3 tenant=default")
    assert current_request() is None


def test_exception_is_described_by_types_and_stacks_of_its_causes() -> None:
    try:
        try:
            {}[SECRET]
        except KeyError as error:
            raise OSError(28, SECRET) from error
    except OSError as error:
        described = describe_exception(error)
    assert "builtins.OSError errno=28\ncaused by:\n" in described
    assert described.endswith("builtins.KeyError")
    assert "test_logs.py" in described
    assert SECRET not in described.replace("{}[SECRET]", "")


def test_loop_exception_is_logged_without_its_message(
    capsys: pytest.CaptureFixture[str], restored_logging: None
) -> None:
    configure_logging("info", "json")

    async def lose_a_task() -> None:
        asyncio.get_running_loop().set_exception_handler(handle_loop_exception)
        asyncio.get_running_loop().call_soon(lambda: {}[SECRET])
        await asyncio.sleep(0)

    asyncio.run(lose_a_task())
    [event] = events(capsys.readouterr().err)
    assert event["exception"].endswith("builtins.KeyError")
    assert SECRET not in json.dumps(event).replace("{}[SECRET]", "")


@pytest.mark.parametrize("level", [logging.INFO, logging.WARNING])
def test_records_of_libraries_come_from_warning_on(
    capsys: pytest.CaptureFixture[str], restored_logging: None, level: int
) -> None:
    configure_logging("debug", "json")
    logging.getLogger("a.library").log(level, "says %s", "this")
    shown = [event["message"] for event in events(capsys.readouterr().err)]
    assert shown == (["says this"] if level == logging.WARNING else [])


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_one_record_is_one_line_whatever_it_holds(
    capsys: pytest.CaptureFixture[str], restored_logging: None, log_format: LogFormat
) -> None:
    configure_logging("info", log_format)
    forged = "x.safetensors\n2026-11-21 00:00:00,000 ERROR forged \x1b[31m\u2028\u202e"
    logging.getLogger("reft_server.preload").warning("preload_skipped file=%s", forged)
    logging.getLogger("reft_server.x").info("event", extra={"fields": {"key": forged}})
    lines = capsys.readouterr().err.split("\n")
    assert len(lines) == 3
    if log_format == "text":
        assert all(line.isprintable() for line in lines)
        assert "x.safetensors\\n2026" in lines[0]
    else:
        assert json.loads(lines[0])["message"] == f"preload_skipped file={forged}"
