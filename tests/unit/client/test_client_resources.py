"""Interventions over both clients: paths, uploads, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import reft_client
from tests.unit.client.fakes import INFO, MakeClient, answering, error_response


@pytest.mark.parametrize(
    ("call", "path", "answer"),
    [
        (lambda client: client.interventions.get("haiku"), "/v1/interventions/haiku", INFO),
        (lambda client: client.interventions.get("haiku@2"), "/v1/interventions/haiku?version=2", INFO),
        (lambda client: client.interventions.get("haiku", 2), "/v1/interventions/haiku?version=2", INFO),
        (
            lambda client: client.interventions.get("haiku@sha256:f0"),
            "/v1/interventions/haiku?version=sha256%3Af0",
            INFO,
        ),
        (
            lambda client: client.interventions.get("acme/haiku@2"),
            "/v1/interventions/haiku?tenant=acme&version=2",
            INFO,
        ),
        (
            lambda client: client.interventions.versions("acme/haiku"),
            "/v1/interventions/haiku/versions?tenant=acme",
            {"name": "acme/haiku", "data": [INFO]},
        ),
        (lambda client: client.interventions.get("../a b"), "/v1/interventions/..%2Fa%20b", INFO),
        (
            lambda client: client.interventions.versions("haiku"),
            "/v1/interventions/haiku/versions",
            {"name": "haiku", "data": [INFO]},
        ),
        (lambda client: client.models(), "/v1/models", {"data": [{"id": "m", "created": 1}]}),
        (lambda client: client.health(), "/health", {"status": "ok"}),
        (lambda client: client.ready(), "/ready", {"status": "ready"}),
        (lambda client: client.version(), "/version", {"version": "1"}),
    ],
)
def test_reading_asks_the_right_path(make_client: MakeClient, call: Any, path: str, answer: dict[str, Any]) -> None:
    handler, requests = answering(answer)
    call(make_client(handler))
    assert (requests[0].method, requests[0].url.raw_path.decode()) == ("GET", path)


@pytest.mark.parametrize(("version", "query"), [(None, ""), (2, "?version=2")])
def test_delete_asks_for_one_version_or_all(make_client: MakeClient, version: int | None, query: str) -> None:
    handler, requests = answering({"name": "haiku", "version": version, "deleted": True})
    assert make_client(handler).interventions.delete("haiku", version).deleted
    assert (requests[0].method, requests[0].url.raw_path.decode()) == ("DELETE", f"/v1/interventions/haiku{query}")


def test_delete_is_not_repeated_when_the_connection_breaks(make_client: MakeClient) -> None:
    handler, requests = answering(httpx.ReadError("reset"))
    with pytest.raises(reft_client.APIConnectionError):
        make_client(handler).interventions.delete("haiku")
    assert len(requests) == 1


def test_upload_streams_the_file_and_reports_progress(make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "haiku.safetensors"
    content = bytes(range(256)) * 3000
    path.write_bytes(content)
    steps: list[tuple[int, int]] = []
    handler, requests = answering(httpx.Response(201, json={**INFO, "self_test": {"sites": []}}))
    answer = make_client(handler).interventions.upload(path, on_progress=lambda *step: steps.append(step))
    assert answer.version == 3
    assert answer.self_test is not None
    request = requests[0]
    assert (request.method, str(request.url.copy_with(host="h", port=None))) == (
        "POST",
        "http://h/v1/interventions?name=haiku",
    )
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["content-length"] == str(len(content))
    assert "transfer-encoding" not in request.headers
    assert request.content == content
    assert steps[-1] == (len(content), len(content))
    assert len(steps) > 1


def test_upload_refused_early_is_sent_again_whole(make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x" * 1000)
    handler, requests = answering(error_response(503), httpx.Response(201, json=INFO))
    make_client(handler).interventions.upload(path, "haiku")
    assert [len(request.content) for request in requests] == [1000, 1000]
    assert requests[0].url.params["name"] == "haiku"


@pytest.mark.parametrize("failure", [httpx.ReadError("reset"), 500])
def test_upload_is_not_repeated_otherwise(make_client: MakeClient, tmp_path: Path, failure: Any) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"x")
    handler, requests = answering(failure)
    with pytest.raises(reft_client.ReftClientError):
        make_client(handler).interventions.upload(path)
    assert len(requests) == 1


@pytest.mark.parametrize("name", ["missing", "."])
def test_upload_of_no_file_is_refused_before_sending(make_client: MakeClient, tmp_path: Path, name: str) -> None:
    handler, requests = answering(INFO)
    with pytest.raises(reft_client.InvalidArgumentError, match="can't read"):
        make_client(handler).interventions.upload(tmp_path / name)
    assert requests == []


def test_download_saves_the_file_whole(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    handler, requests = answering(httpx.Response(200, stream=body([b"ab", b"cd"]), headers={"content-length": "4"}))
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    steps: list[tuple[int, int]] = []
    assert (
        make_client(handler).interventions.download("haiku@2", target, on_progress=lambda *step: steps.append(step))
        == target
    )
    assert requests[0].url.raw_path == b"/v1/interventions/haiku/download?version=2"
    assert target.read_bytes() == b"abcd"
    assert steps == [(2, 4), (4, 4)]
    assert list(tmp_path.iterdir()) == [target]


def test_download_that_breaks_leaves_the_old_file(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    handler, _ = answering(httpx.Response(200, stream=body([b"ab", httpx.ReadError("reset")])))
    target = tmp_path / "out.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(reft_client.APIConnectionError):
        make_client(handler).interventions.download("haiku", target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_download_that_is_given_up_closes_the_connection(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    def give_up(*_: int) -> None:
        raise KeyboardInterrupt

    served = body([b"ab", b"cd"])
    handler, _ = answering(httpx.Response(200, stream=served))
    with pytest.raises(KeyboardInterrupt):
        make_client(handler).interventions.download("haiku", tmp_path / "out", on_progress=give_up)
    assert served.is_closed
    assert list(tmp_path.iterdir()) == []


def test_download_into_missing_folder_is_refused(make_client: MakeClient, tmp_path: Path, body: Any) -> None:
    handler, _ = answering(httpx.Response(200, stream=body([b"ab"])))
    with pytest.raises(reft_client.InvalidArgumentError, match="can't write"):
        make_client(handler).interventions.download("haiku", tmp_path / "no" / "out")


ALIAS = {"name": "haiku", "alias": "prod", "version": 2, "content_hash": "sha256:ff", "previous": 1}
SIDE = {"id": "c", "created": 1, "model": "m", "choices": [{"index": 0, "text": "hi"}]}
COMPARISON = {"name": "haiku", "version": 1, "content_hash": "x", "is_same": False, "base": SIDE, "edited": SIDE}


@pytest.mark.parametrize(
    ("call", "method", "path", "body", "answer"),
    [
        (lambda sets: sets.promote("haiku", "prod", 2), "PUT", "haiku/aliases/prod", {"version": 2}, ALIAS),
        (lambda sets: sets.promote("haiku", "prod", "x"), "PUT", "haiku/aliases/prod", {"version": "x"}, ALIAS),
        (lambda sets: sets.rollback("haiku", "prod"), "POST", "haiku/aliases/prod/rollback", None, ALIAS),
        (lambda sets: sets.alias("acme/haiku", "prod"), "GET", "haiku/aliases/prod?tenant=acme", None, ALIAS),
        (lambda sets: sets.aliases("haiku"), "GET", "haiku/aliases", None, {"data": [ALIAS]}),
        (
            lambda sets: sets.delete_alias("haiku", "a/b"),
            "DELETE",
            "haiku/aliases/a%2Fb",
            None,
            {"name": "haiku", "alias": "a/b"},
        ),
        (
            lambda sets: sets.describe("haiku", labels={"a": None, "b": "c"}),
            "PATCH",
            "haiku",
            {"labels": {"a": None, "b": "c"}},
            INFO,
        ),
        (lambda sets: sets.set_card("haiku", None), "DELETE", "haiku/card", None, INFO),
        (
            lambda sets: sets.restore("haiku", 2),
            "POST",
            "haiku/restore?version=2",
            None,
            {"name": "haiku", "data": [INFO]},
        ),
        (
            lambda sets: sets.test("haiku@prod"),
            "POST",
            "haiku/test?version=prod",
            None,
            {"name": "haiku", "version": 1, "content_hash": "x", "self_test": {}},
        ),
        (
            lambda sets: sets.compare("haiku", "hi", max_tokens=3, against="haiku@1"),
            "POST",
            "haiku/compare",
            {"prompt": "hi", "against": "haiku@1", "max_tokens": 3},
            COMPARISON,
        ),
        (
            lambda sets: sets.compare("haiku", messages="hi"),
            "POST",
            "haiku/compare",
            {"messages": [{"role": "user", "content": "hi"}]},
            COMPARISON,
        ),
        (
            lambda sets: sets.list(label="task=a", limit=2, after="shared/x", deleted=True),
            "GET",
            "?limit=2&after=shared%2Fx&deleted=true&label=task%3Da",
            None,
            {"data": []},
        ),
        (
            lambda sets: sets.delete("haiku", purge=True),
            "DELETE",
            "haiku?purge=true",
            None,
            {"name": "haiku"},
        ),
    ],
)
def test_sets_ask_the_right_path(
    make_client: MakeClient, call: Any, method: str, path: str, body: dict[str, Any] | None, answer: dict[str, Any]
) -> None:
    handler, requests = answering(answer)
    assert call(make_client(handler).interventions) is not None
    (request,) = requests
    expected = "/v1/interventions" + (path if path.startswith("?") else f"/{path}")
    assert (request.method, request.url.raw_path.decode()) == (method, expected)
    assert (json.loads(request.content) if request.content else None) == body


def test_card_is_text_both_ways(make_client: MakeClient) -> None:
    handler, requests = answering(httpx.Response(200, text="# Haiku", headers={"content-type": "text/markdown"}), INFO)
    client = make_client(handler)
    assert client.interventions.card("haiku") == "# Haiku"
    client.interventions.set_card("haiku", "# Über")
    assert requests[1].content == "# Über".encode()
    assert requests[1].headers["content-type"] == "text/markdown"


def test_upload_sends_its_checksum_and_its_conditions(make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "haiku.safetensors"
    path.write_bytes(b"content")
    handler, requests = answering(httpx.Response(201, json=INFO))
    make_client(handler).interventions.upload(
        path, if_match="sha256:ff", content_hash="sha256:aa", provenance={"git": "abc"}, idempotency_key="k"
    )
    (request,) = requests
    digest = base64.b64encode(hashlib.sha256(b"content").digest()).decode()
    assert request.headers["content-digest"] == f"sha-256=:{digest}:"
    assert request.headers["if-match"] == '"sha256:ff"'
    assert request.headers["idempotency-key"] == "k"
    params = {"name": "haiku", "content_hash": "sha256:aa", "provenance": '{"git": "abc"}'}
    assert dict(request.url.params) == params


def test_what_has_a_key_is_sent_again_when_the_connection_breaks(make_client: MakeClient, tmp_path: Path) -> None:
    path = tmp_path / "haiku.safetensors"
    path.write_bytes(b"content")
    handler, requests = answering(httpx.ReadError("reset"), httpx.Response(201, json=INFO))
    make_client(handler).interventions.upload(path, idempotency_key="k")
    assert [request.headers["idempotency-key"] for request in requests] == ["k", "k"]
    handler, requests = answering(httpx.ReadError("reset"), ALIAS)
    make_client(handler).interventions.rollback("haiku", "prod")
    assert len({request.headers["idempotency-key"] for request in requests}) == 1
    assert len(requests) == 2


def test_upload_that_would_replace_another_version_is_a_type_of_its_own(
    make_client: MakeClient, tmp_path: Path
) -> None:
    path = tmp_path / "haiku.safetensors"
    path.write_bytes(b"content")
    handler, requests = answering(error_response(412, "intervention_precondition_failed"))
    with pytest.raises(reft_client.PreconditionFailedError):
        make_client(handler).interventions.upload(path, must_be_new=True)
    assert requests[0].headers["if-none-match"] == "*"
