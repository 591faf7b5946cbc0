"""Interventions as a resource: labels, pages, restore, conditions, checksums, idempotency, cards, trials."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_interventions import dumps
from reft_interventions.errors import InterventionSelfTestError
from reft_server.api.digests import BodyDigest
from reft_server.errors import ContentDigestError, InvalidRequestError
from reft_server.tenants import TenantDirectory
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

URL = "/v1/interventions"


def upload(client: TestClient, name: str = "style", seed: int = 0, **options: Any) -> Any:
    params = {"name": name, **options.pop("params", {})}
    return client.post(URL, params=params, content=dumps(make_set(seed)), **options)


def error_of(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_description_and_labels_are_patched_and_searched(client: TestClient) -> None:
    for seed, name in enumerate(("one", "two", "three")):
        upload(client, name, seed)
    shown = client.patch(f"{URL}/one", json={"description": "Talks\u2026", "labels": {"task": "a", "draft": ""}}).json()
    assert (shown["description"], shown["labels"]) == ("Talks\u2026", {"task": "a", "draft": ""})
    client.patch(f"{URL}/two", json={"labels": {"task": "b", "team/owner": "x y"}})
    patched = client.patch(f"{URL}/one", json={"labels": {"draft": None, "lang": "de"}}).json()
    assert (patched["description"], patched["labels"]) == ("Talks\u2026", {"task": "a", "lang": "de"})

    def search(label: str) -> list[str]:
        return [one["name"] for one in client.get(URL, params={"label": label}).json()["data"]]

    assert search("task") == ["one", "two"]
    assert search("task=a") == ["one"]
    assert search("task,lang=de") == ["one"]
    assert search("team/owner=x y") == ["two"]
    assert search("task=nothing") == search("draft") == []
    assert client.patch(f"{URL}/one", json={"description": None, "labels": None}).json()["labels"] == {}
    assert client.get(f"{URL}/one").json()["description"] == make_set(0).manifest.description


@pytest.mark.parametrize(
    "body",
    [
        {"labels": {"Upper": "x"}},
        {"labels": {"": "x"}},
        {"labels": {"a" * 65: "x"}},
        {"labels": {"a": "two\nlines"}},
        {"labels": {"a": "one,two"}},
        {"labels": {"a": "x" * 257}},
        {"labels": {"a": 1}},
        {"labels": {f"k{number}": "x" for number in range(65)}},
        {"description": "x" * 1025},
        {"description": "\ud800"},
        {"description": "a NUL \0"},
        {"description": "an escape \x1b[31m"},
    ],
)
def test_notes_that_break_a_rule_are_refused(client: TestClient, body: dict[str, Any]) -> None:
    upload(client)
    response = client.patch(f"{URL}/style", content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert client.get(f"{URL}/style").json()["labels"] == {}


def test_set_has_at_most_64_labels_over_all_patches(client: TestClient) -> None:
    upload(client)
    assert client.patch(f"{URL}/style", json={"labels": {f"k{n}": "" for n in range(64)}}).status_code == 200
    assert client.patch(f"{URL}/style", json={"labels": {"one-more": ""}}).status_code == 400
    assert client.patch(f"{URL}/style", json={"labels": {"one-more": "", "k0": None}}).status_code == 200


def test_lists_come_in_pages_that_deletes_do_not_disturb(client: TestClient) -> None:
    for seed, name in enumerate("abcde"):
        upload(client, name, seed)
    first = client.get(URL, params={"limit": 2}).json()
    assert ([one["name"] for one in first["data"]], first["has_more"]) == (["a", "b"], True)
    assert (first["first_id"], first["last_id"]) == ("shared/a", "shared/b")
    client.delete(f"{URL}/b")
    client.delete(f"{URL}/d")
    rest = client.get(URL, params={"limit": 2, "after": first["last_id"]}).json()
    assert ([one["name"] for one in rest["data"]], rest["has_more"]) == (["c", "e"], False)
    end = client.get(URL, params={"after": "e"}).json()
    assert (end["data"], end["has_more"], end["last_id"]) == ([], False, None)


def test_versions_come_in_pages(client: TestClient) -> None:
    for seed in range(3):
        upload(client, seed=seed)
    first = client.get(f"{URL}/style/versions", params={"limit": 2}).json()
    assert ([one["version"] for one in first["data"]], first["last_id"], first["has_more"]) == ([1, 2], "2", True)
    rest = client.get(f"{URL}/style/versions", params={"after": first["last_id"]}).json()
    assert ([one["version"] for one in rest["data"]], rest["has_more"]) == ([3], False)


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after=a&after=b", "label=a&label=b"])
def test_page_that_makes_no_sense_is_a_400(client: TestClient, query: str) -> None:
    assert client.get(f"{URL}?{query}").status_code == 400


def test_deleted_versions_are_listed_and_restored(make_client: Callable[..., TestClient]) -> None:
    client = make_client(retention_s=3600.0)
    for seed in (0, 1):
        upload(client, seed=seed)
    client.delete(f"{URL}/style")
    assert client.get(URL).json()["data"] == []
    gone = client.get(URL, params={"deleted": "true"}).json()["data"]
    assert [(one["name"], one["version"]) for one in gone] == [("style", 1), ("style", 2)]
    assert gone[0]["restorable_until"] == pytest.approx(gone[0]["deleted"] + 3600, abs=1)
    restored = client.post(f"{URL}/style/restore", params={"version": "1"}).json()
    assert [(one["version"], one["deleted"]) for one in restored["data"]] == [(1, None)]
    assert client.get(f"{URL}/style/download").content == dumps(make_set(0))
    left = client.get(f"{URL}/style/versions", params={"deleted": "true"}).json()["data"]
    assert [one["version"] for one in left] == [2]
    assert client.delete(f"{URL}/style", params={"version": "2", "purge": "true"}).status_code == 200
    assert error_of(client.post(f"{URL}/style/restore", params={"version": "2"})) == (404, "intervention_not_found")
    assert client.delete(f"{URL}/style", params={"purge": "true"}).status_code == 200
    assert error_of(client.post(f"{URL}/style/restore")) == (404, "intervention_not_found")
    assert client.delete(f"{URL}/style", params={"purge": "true"}).status_code == 404


def test_download_that_is_known_is_not_sent_again(client: TestClient) -> None:
    tag = upload(client).headers["etag"]
    assert tag == f'"{make_set(0).content_hash}"'
    for header in (tag, f'W/{tag}, "other"', "*"):
        response = client.get(f"{URL}/style/download", headers={"if-none-match": header})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", tag)
    response = client.get(f"{URL}/style/download", headers={"if-none-match": '"sha256:00"'})
    assert (response.status_code, response.content) == (200, dumps(make_set(0)))


def test_upload_replaces_only_what_its_condition_names(client: TestClient) -> None:
    first = upload(client, headers={"if-none-match": "*"})
    assert first.status_code == 201
    tag = first.headers["etag"]
    failed = (412, "intervention_precondition_failed")
    assert error_of(upload(client, seed=1, headers={"if-none-match": "*"})) == failed
    assert error_of(upload(client, seed=1, headers={"if-match": '"sha256:00"'})) == failed
    assert error_of(upload(client, seed=1, headers={"if-match": f"W/{tag}"})) == failed
    assert error_of(upload(client, "other", 1, headers={"if-match": "*"})) == failed
    assert upload(client, seed=1, headers={"if-match": f'"x", {tag}'}).json()["version"] == 2
    assert error_of(upload(client, seed=2, headers={"if-match": tag})) == failed
    assert upload(client, seed=2, headers={"if-match": "*"}).json()["version"] == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"if-match": "sha256:00"},
        {"if-match": ""},
        {"if-match": '"a" "b"'},
        {"if-none-match": '"sha256:00"'},
        {"if-match": "*", "if-none-match": "*"},
        {"content-digest": "sha-256=abc"},
        {"content-digest": "md5=:abcd:"},
        {"content-digest": "sha-256=:a:"},
    ],
)
def test_upload_with_a_condition_that_makes_no_sense_is_a_400(client: TestClient, headers: dict[str, str]) -> None:
    assert error_of(upload(client, headers=headers)) == (400, "invalid_request")
    assert client.get(URL).json()["data"] == []


@pytest.mark.parametrize("algorithm", ["sha-256", "sha-512"])
@pytest.mark.parametrize("is_form", [False, True])
def test_upload_that_was_changed_on_its_way_is_refused(client: TestClient, algorithm: str, is_form: bool) -> None:
    content = dumps(make_set(0))
    body: dict[str, Any] = {"files": {"file": ("x", content)}} if is_form else {"content": content}
    request = client.build_request("POST", URL, params={"name": "style"}, **body)

    def send(announced: bytes) -> Any:
        digest = base64.b64encode(hashlib.new(algorithm.replace("-", ""), announced).digest()).decode()
        headers = {**request.headers, "content-digest": f"{algorithm}=:{digest}:"}
        return client.post(URL, params={"name": "style"}, content=request.read(), headers=headers)

    assert error_of(send(request.read() + b"x")) == (400, "content_digest_mismatch")
    assert client.get(URL).json()["data"] == []
    assert send(request.read()).status_code == 201


def test_digest_counts_every_byte() -> None:
    content = b"some bytes"
    header = f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:, unknown=:AAAA:"
    digest = BodyDigest(header)
    digest.update(content[:4])
    with pytest.raises(ContentDigestError):
        digest.check()
    digest.update(content[4:])
    digest.check()
    with pytest.raises(InvalidRequestError):
        BodyDigest("unknown=:AAAA:")


def test_upload_of_another_content_than_announced_stores_nothing(client: TestClient) -> None:
    wrong = upload(client, params={"content_hash": make_set(1).content_hash})
    assert error_of(wrong) == (400, "content_digest_mismatch")
    assert make_set(0).content_hash in wrong.json()["error"]["message"]
    assert client.get(URL).json()["data"] == []
    assert upload(client, params={"content_hash": make_set(0).content_hash}).status_code == 201
    assert upload(client, params={"content_hash": "sha256:00"}).status_code == 400


def test_upload_with_one_key_is_done_once(client: TestClient, engine: FakeEngine) -> None:
    key = {"idempotency-key": "a-key"}
    first = upload(client, seed=0, headers=key)
    upload(client, seed=1)
    again = upload(client, seed=0, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["etag"] == first.headers["etag"]
    assert "idempotency-replayed" not in first.headers
    assert client.get(f"{URL}/style").json()["version"] == 2
    for other in ({"seed": 2}, {"name": "other"}, {"params": {"provenance": "{}"}}):
        assert error_of(upload(client, headers=key, **other)) == (422, "idempotency_key_reused")
    assert upload(client, seed=0, headers={"idempotency-key": "b-key"}).json()["version"] == 3


def test_form_that_is_sent_again_is_the_same_request(client: TestClient) -> None:
    def send(seed: int) -> Any:
        form = {"file": ("x", dumps(make_set(seed)))}  # a boundary of its own each time
        return client.post(URL, data={"name": "style"}, files=form, headers={"idempotency-key": "form"})

    assert (send(0).status_code, send(0).headers["idempotency-replayed"]) == (201, "true")
    assert error_of(send(1)) == (422, "idempotency_key_reused")


def test_failed_upload_frees_its_key(client: TestClient, engine: FakeEngine) -> None:
    key = {"idempotency-key": "a-key"}
    engine.failure = InterventionSelfTestError("the edit does nothing")
    assert upload(client, headers=key).status_code == 422
    engine.failure = None
    assert upload(client, headers=key).status_code == 201


def test_rollback_with_one_key_goes_one_step(client: TestClient) -> None:
    for seed in range(3):
        upload(client, seed=seed)
        client.put(f"{URL}/style/aliases/prod", json={"version": seed + 1})
    key = {"idempotency-key": "back"}
    answers = [client.post(f"{URL}/style/aliases/prod/rollback", headers=key) for _ in range(3)]
    assert [answer.json()["version"] for answer in answers] == [2, 2, 2]
    assert client.get(f"{URL}/style@prod").json()["version"] == 2


def test_keys_of_one_tenant_are_not_anothers(make_client: Callable[..., TestClient]) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    client = make_client(directory=directory)
    for seed, tenant in enumerate(("acme", "globex")):
        directory.create_tenant(tenant)
        key = directory.create_key(tenant, ("upload",))[1].text
        headers = {"authorization": f"Bearer {key}", "idempotency-key": "same"}
        sent = upload(client, seed=seed, headers=headers)
        assert (sent.status_code, sent.json()["tenant"]) == (201, tenant)


def test_provenance_is_shown_with_the_version_and_its_key_to_the_owner_only(
    make_client: Callable[..., TestClient],
) -> None:
    directory = TenantDirectory.in_memory()
    directory.open()
    directory.create_tenant("acme")
    client = make_client(directory=directory)
    made, born = directory.create_key("acme", ("upload",))
    owner = {"authorization": f"Bearer {born.text}"}
    friend = {"authorization": f"Bearer {directory.create_key('', ('infer',))[1].text}"}
    details = {"git": "abc", "rows": 3}
    upload(client, headers=owner, params={"provenance": json.dumps(details)})
    client.put(f"{URL}/style/grants/shared", headers=owner)
    shown = client.get(f"{URL}/style", headers=owner).json()["provenance"]
    assert shown == {
        "source": "upload", "key_id": made.key_id, "details": details, "training": make_set(0).manifest.training,
    }  # fmt: skip
    assert client.get(f"{URL}/style", params={"tenant": "acme"}, headers=friend).status_code == 404
    assert upload(client, headers=owner, params={"provenance": "[1]"}).status_code == 400
    for broken in ("{", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": ' * 300 + "1" + "}" * 300, '{"a": "\\ud800"}'):
        assert error_of(upload(client, headers=owner, params={"provenance": broken})) == (400, "invalid_request")


def test_card_is_the_owners_or_made_of_the_facts(client: TestClient) -> None:
    upload(client)
    client.patch(f"{URL}/style", json={"description": "<script>| *bold*"})
    made = client.get(f"{URL}/style/card")
    assert made.headers["content-type"] == "text/markdown; charset=utf-8"
    assert made.headers["x-content-type-options"] == "nosniff"
    assert made.text.startswith("# style\n")
    assert r"\<script\>\| \*bold\*" in made.text
    card = "# Mine\n\nTrained on \u00fc.\n"
    assert client.put(f"{URL}/style/card", content=card.encode()).status_code == 200
    assert client.get(f"{URL}/style/card").text == card
    assert client.put(f"{URL}/style/card", content=b"x" * 65_537).status_code == 413
    assert client.put(f"{URL}/style/card", content=b"\xff").status_code == 400
    assert client.get(f"{URL}/style/card").text == card
    client.delete(f"{URL}/style/card")
    assert client.get(f"{URL}/style/card").text == made.text


def test_stored_version_is_tested_again(client: TestClient, engine: FakeEngine) -> None:
    upload(client, seed=0)
    upload(client, seed=1)
    tested = client.post(f"{URL}/style/test", params={"version": "1"}).json()
    assert (tested["name"], tested["version"], tested["passed"]) == ("style", 1, True)
    assert tested["content_hash"] == make_set(0).content_hash
    assert tested["self_test"]["sites"][0]["num_edited_rows"] == 1
    engine.failure = InterventionSelfTestError("the edit does nothing")
    assert error_of(client.post(f"{URL}/style/test")) == (422, "intervention_self_test_failed")


@pytest.mark.parametrize("fields", [{"prompt": "abc"}, {"messages": [{"role": "user", "content": "abc"}]}])
def test_comparison_runs_both_sides_with_one_seed(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any]
) -> None:
    upload(client, seed=0)
    upload(client, seed=1)
    body = {**fields, "max_tokens": 3, "scale": 0.5}
    response = client.post(f"{URL}/style/compare", params={"version": "1"}, json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert (answer["name"], answer["version"], answer["content_hash"]) == ("style", 1, make_set(0).content_hash)
    assert "intervention" not in answer["base"]
    assert [(one["version"], one["scale"]) for one in answer["edited"]["intervention"]] == [(1, 0.5)]
    assert answer["base"]["usage"]["completion_tokens"] == answer["edited"]["usage"]["completion_tokens"] == 3
    assert answer["is_same"] is True  # the fake engine edits nothing
    assert {one.sampling.seed for one in engine.submitted} == {0}
    against = client.post(f"{URL}/style/compare", json={**body, "against": "style@1"}).json()
    assert [against[side]["intervention"][0]["version"] for side in ("base", "edited")] == [1, 2]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ({"prompt": "a", "model": "base"}, "model"),
        ({"prompt": "a", "stream": True}, "stream"),
        ({"prompt": "a", "task": "x"}, "task"),
        ({"prompt": "a", "temperature": 9}, "temperature"),
        ({"prompt": "a", "against": 3}, None),
    ],
)
def test_comparison_that_makes_no_sense_is_a_400(client: TestClient, body: dict[str, Any], param: str | None) -> None:
    upload(client)
    response = client.post(f"{URL}/style/compare", json=body)
    assert response.status_code == 400, response.text
    assert param is None or response.json()["error"]["param"] == param
