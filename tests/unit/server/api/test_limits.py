"""A tenant's limits over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_server.tenants import TenantDirectory, TenantLimits
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]


def limited(make_client: MakeClient, **limits: int) -> tuple[TestClient, TenantDirectory]:
    """A client with the key of the tenant `acme`, which has these limits."""
    directory = TenantDirectory.in_memory()
    directory.open()
    directory.create_tenant("acme", TenantLimits(**limits))
    client = make_client(directory=directory)
    client.headers["authorization"] = f"Bearer {directory.create_key('acme', ('infer', 'upload'))[1].text}"
    return client, directory


def complete(client: TestClient, prompt: str = "abcd", **fields: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 2} | fields)


def test_requests_beyond_the_rate_are_told_when_to_come_back(make_client: MakeClient, engine: FakeEngine) -> None:
    client, _ = limited(make_client, requests_per_minute=2)
    first = complete(client)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert "x-ratelimit-limit-tokens" not in first.headers
    assert client.get("/v1/models").status_code == 200
    refused = complete(client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert len(engine.submitted) == 1
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_prompt_and_answer_are_counted(make_client: MakeClient, stream: bool) -> None:
    client, _ = limited(make_client, tokens_per_minute=12)
    first = complete(client, stream=stream)  # 4 of the prompt, 2 generated
    assert first.headers["x-ratelimit-limit-tokens"] == "12"
    second = complete(client, stream=stream)
    assert second.headers["x-ratelimit-remaining-tokens"] == "2" if stream else "0"
    refused = complete(client, stream=stream)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 15 <= int(refused.headers["retry-after"]) <= 20


def test_prompt_larger_than_the_bucket_runs_when_it_is_full(make_client: MakeClient) -> None:
    client, _ = limited(make_client, tokens_per_minute=3)
    assert complete(client, "a" * 50).status_code == 200
    assert complete(client, "a").status_code == 429


def test_concurrent_requests_of_a_tenant_are_bounded(make_client: MakeClient, engine: FakeEngine) -> None:
    client, directory = limited(make_client, max_concurrent_requests=1)
    engine.hold_after = 1
    answers: list[int] = []
    running = threading.Thread(target=lambda: answers.append(complete(client).status_code))
    running.start()
    while not engine.submitted:
        pass
    refused = complete(client)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert "retry-after" in refused.headers
    directory.set_limits("acme", TenantLimits(max_concurrent_requests=2))
    engine.release()
    running.join()
    assert answers == [200]
    assert complete(client).status_code == 200


def test_refused_stream_is_an_ordinary_error(make_client: MakeClient) -> None:
    client, _ = limited(make_client, tokens_per_minute=0)
    response = complete(client, stream=True)
    assert (response.status_code, response.json()["error"]["code"]) == (429, "rate_limit_exceeded")


def test_sets_and_bytes_of_a_tenant_are_bounded(make_client: MakeClient) -> None:
    file = dumps(make_set(1))
    client, directory = limited(make_client, max_sets=1, max_stored_bytes=2 * len(file))

    def upload(name: str, seed: int) -> Any:
        response = client.post(f"/v1/interventions?name={name}", content=dumps(make_set(seed)))
        return response.status_code if response.status_code == 201 else response.json()["error"]["code"]

    assert upload("one", 1) == 201
    assert upload("one", 1) == 201  # the same content is no new version
    assert upload("two", 2) == "storage_quota_exceeded"
    assert upload("one", 2) == 201
    assert upload("one", 3) == "storage_quota_exceeded"
    assert len(client.get("/v1/interventions/one/versions").json()["data"]) == 2
    assert client.delete("/v1/interventions/one?version=1").status_code == 200
    assert upload("one", 3) == 201
    directory.set_limits("acme", TenantLimits())
    assert upload("two", 2) == 201


def test_another_tenants_sets_do_not_count(make_client: MakeClient) -> None:
    client, directory = limited(make_client, max_sets=1)
    operator = {"authorization": f"Bearer {directory.create_key('', ('upload',))[1].text}"}
    for name in ("one", "two"):
        answer = client.post(f"/v1/interventions?name={name}", content=dumps(make_set(1)), headers=operator)
        assert answer.status_code == 201
    assert client.post("/v1/interventions?name=mine", content=dumps(make_set(1))).status_code == 201


def test_upload_larger_than_the_tenants_limit_is_refused(make_client: MakeClient) -> None:
    client, _ = limited(make_client, max_upload_bytes=100)
    refused = client.post("/v1/interventions?name=one", content=dumps(make_set(1)))
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "intervention_file_too_large")
