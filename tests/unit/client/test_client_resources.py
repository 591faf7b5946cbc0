"""Interventions over both clients: paths, uploads, downloads."""

from __future__ import annotations

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
