"""Interventions as a resource, and what `model` and `intervention` select."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_interventions.errors import InterventionSelfTestError
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

URL = "/v1/interventions"


def upload(client: TestClient, name: str, seed: int = 0, status: int = 201, content: bytes | None = None) -> Any:
    data = dumps(make_set(seed)) if content is None else content
    response = client.post(URL, params={"name": name}, content=data)
    assert response.status_code == status, response.text
    return response.json()


def files_in(folder: Path) -> list[Path]:
    """Everything but the index and the lock, which an empty store has too."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("index", "open.lock"))]


def test_upload_answers_with_the_version_and_its_self_test(client: TestClient) -> None:
    info = upload(client, "style")
    assert (info["name"], info["version"], info["state"]) == ("style", 1, "loaded")
    assert info["content_hash"] == make_set(0).content_hash
    assert (info["formulas"], info["layers"], info["positions"]) == (["loreft"], [1], ["l1"])
    assert info["num_parameters"] == 2 * 16 * 2 + 2
    assert info["self_test"]["sites"] == [
        {"layer": 1, "component": "block_output", "num_edited_rows": 1, "delta_norm": 1.0, "residual_norm": 10.0}
    ]


@pytest.mark.parametrize("is_name_in_form", [True, False])
def test_upload_takes_a_multipart_form(client: TestClient, is_name_in_form: bool) -> None:
    response = client.post(
        URL,
        params={} if is_name_in_form else {"name": "style"},
        data={"name": "style"} if is_name_in_form else {},
        files={"file": ("any.safetensors", dumps(make_set(0)))},
    )
    assert response.status_code == 201, response.text
    assert client.get(f"{URL}/style/download").content == dumps(make_set(0))


def test_upload_of_other_content_makes_a_new_version(client: TestClient) -> None:
    upload(client, "style", 0)
    assert upload(client, "style", 1)["version"] == 2
    assert client.get(f"{URL}/style").json()["version"] == 2
    assert client.get(f"{URL}/style", params={"version": "1"}).json()["content_hash"] == make_set(0).content_hash
    assert client.get(f"{URL}/style@1").json()["version"] == 1
    versions = client.get(f"{URL}/style/versions").json()
    assert [item["version"] for item in versions["data"]] == [1, 2]
    assert [item["version"] for item in client.get(URL).json()["data"]] == [2]


def test_download_gives_the_bytes_back(client: TestClient) -> None:
    upload(client, "style", 0)
    upload(client, "style", 1)
    response = client.get(f"{URL}/style/download", params={"version": "1"})
    assert response.content == dumps(make_set(0))
    assert response.headers["etag"] == f'"{make_set(0).content_hash}"'
    assert "style-v1.safetensors" in response.headers["content-disposition"]


def test_delete_removes_a_version_or_the_whole_name(client: TestClient) -> None:
    for seed in range(3):
        upload(client, "style", seed)
    assert client.delete(f"{URL}/style", params={"version": "3"}).json()["version"] == 3
    assert client.get(f"{URL}/style").json()["version"] == 2
    assert client.delete(f"{URL}/style").json() == {
        "object": "intervention.deleted", "name": "style", "version": None, "deleted": True,
    }  # fmt: skip
    assert client.get(f"{URL}/style").status_code == 404
    assert client.delete(f"{URL}/style").json()["error"]["code"] == "intervention_not_found"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "invalid_request"),
        (b"not a file", 422, "invalid_intervention_file"),
        ((1 << 30).to_bytes(8, "little") + b"{}", 413, "intervention_file_too_large"),
        (dumps(make_set(0))[:-10], 422, "invalid_intervention_file"),
        (b"x" * 20_000, 413, "intervention_file_too_large"),
        (b"x" * 200_000, 413, "payload_too_large"),
    ],
    ids=["empty", "garbage", "huge header", "truncated", "above the cap", "far above the cap"],
)
@pytest.mark.parametrize("is_form", [False, True])
def test_upload_refused_stores_nothing(
    make_client: Any, store_folder: Path, content: bytes, status: int | None, code: str | None, is_form: bool
) -> None:
    client = make_client(max_upload_bytes=10_000)
    body = {"files": {"file": ("x", content)}} if is_form else {"content": content}
    response = client.post(URL, params={"name": "style"}, **body)
    if is_form and content == b"":
        status, code = 422, "invalid_intervention_file"
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert client.get(URL).json()["data"] == []
    assert files_in(store_folder) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a" * 300, ".hidden", "Ümlaut", "a@1"])
def test_upload_under_a_bad_name_is_a_400(client: TestClient, store_folder: Path, name: str) -> None:
    error = upload(client, name, status=400)["error"]
    assert error["code"] in ("invalid_intervention_name", "invalid_request")
    assert files_in(store_folder) == []


def test_upload_failing_its_self_test_is_not_named(client: TestClient, engine: FakeEngine, store_folder: Path) -> None:
    engine.failure = InterventionSelfTestError("the edit does nothing")
    assert upload(client, "style", status=422)["error"]["code"] == "intervention_self_test_failed"
    assert files_in(store_folder) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\nabc", "multipart/form-data; boundary=x"),
        (b"nonsense", "multipart/form-data; boundary=x"),
        (b"nonsense", "multipart/form-data"),
        (
            b'--x\r\nContent-Disposition: form-data; name="other"\r\n\r\nabc\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n'
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"n" * 5000 + b"\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
        ),
    ],
    ids=["cut off", "garbage", "no boundary", "no file", "two files", "long name"],
)  # fmt: skip
def test_upload_of_a_malformed_form_is_a_400(
    client: TestClient, store_folder: Path, body: bytes, content_type: str
) -> None:
    response = client.post(URL, params={"name": "style"}, content=body, headers={"content-type": content_type})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["code"] == "invalid_request"
    assert files_in(store_folder) == []


def complete(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/completions", json={"prompt": "abc", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"model": "base"}, {"model": "tests/tiny"}, {"model": "tiny"}, {"model": None, "intervention": None},
        {"intervention": []},
    ],
)  # fmt: skip
def test_model_names_the_base(client: TestClient, engine: FakeEngine, fields: dict[str, Any]) -> None:
    response = complete(client, **fields)
    assert response.status_code == 200
    assert "intervention" not in response.json()
    assert engine.submitted[0].interventions == ()


@pytest.mark.parametrize(
    ("fields", "version"),
    [
        ({"intervention": "style"}, 2),
        ({"intervention": "style@1"}, 1),
        ({"intervention": {"name": "style", "version": 1}}, 1),
        ({"intervention": ["style"]}, 2),
        ({"model": "style"}, 2),
        ({"model": "style@1"}, 1),
        ({"model": "base:style@1"}, 1),
        ({"model": "tests/tiny:style"}, 2),
        ({"model": "tiny", "intervention": "style"}, 2),
        ({"model": "style", "intervention": "style@1"}, 1),
        ({"model": "style@1", "intervention": "style@1"}, 1),
    ],
)
def test_intervention_is_resolved(client: TestClient, engine: FakeEngine, fields: dict[str, Any], version: int) -> None:
    hashes = [upload(client, "style", seed)["content_hash"] for seed in (0, 1)]
    response = complete(client, **fields)
    assert response.status_code == 200, response.text
    assert response.json()["intervention"] == [
        {"name": "style", "version": version, "content_hash": hashes[version - 1], "scale": 1.0}
    ]
    (folded,) = engine.submitted[0].interventions
    assert folded.content_hash == make_set(version - 1).fold().content_hash


def test_interventions_apply_in_order_with_their_scale(client: TestClient, engine: FakeEngine) -> None:
    upload(client, "one", 0)
    upload(client, "two", 1)
    response = complete(client, intervention=[{"name": "two", "scale": -0.5}, "one"])
    applied = [(item["name"], item["scale"]) for item in response.json()["intervention"]]
    assert applied == [("two", -0.5), ("one", 1.0)]
    hashes = [folded.content_hash for folded in engine.submitted[0].interventions]
    assert hashes == [make_set(1).fold().scaled(-0.5).content_hash, make_set(0).fold().content_hash]


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
        ({"model": "style@9"}, 404, "model_not_found", "model"),
        ({"model": "base:nothing"}, 404, "model_not_found", "model"),
        ({"model": "a/b/../c"}, 404, "model_not_found", "model"),
        ({"model": "@"}, 404, "model_not_found", "model"),
        ({"intervention": "nothing"}, 404, "intervention_not_found", "intervention"),
        ({"intervention": "style@9"}, 404, "intervention_not_found", "intervention"),
        ({"intervention": "a/b"}, 404, "intervention_not_found", "intervention"),  # of the tenant a
        ({"intervention": "a/b/c"}, 400, "invalid_intervention_name", "intervention"),
        ({"model": "style", "intervention": "other"}, 400, "invalid_request", "intervention"),
        ({"model": "style@1", "intervention": "style@2"}, 400, "invalid_request", "intervention"),
        ({"model": "style", "intervention": ["style", "other"]}, 400, "invalid_request", "intervention"),
    ],
)
def test_model_or_intervention_that_is_not_there_is_refused(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    upload(client, "style")
    response = complete(client, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert engine.submitted == []


def test_models_list_the_base_and_the_interventions(make_client: Any) -> None:
    client = make_client(served_model_name="served")
    upload(client, "style")
    cards = client.get("/v1/models").json()["data"]
    assert [(card["id"], card["root"], card["parent"]) for card in cards] == [
        ("served", "tests/tiny", None), ("style", "served", "served"),
    ]  # fmt: skip
    assert client.get("/v1/models/served").json()["id"] == "served"
    assert client.get("/v1/models/tests/tiny").json()["id"] == "served"
    assert client.get("/v1/models/style").json()["parent"] == "served"
    assert client.get("/v1/models/nothing").json()["error"]["code"] == "model_not_found"
    assert complete(client).json()["model"] == "served"
