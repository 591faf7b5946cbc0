"""Text that clients choose stays text: in paths, names, file names, forms, headers, templates and manifests."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.testclient import TestClient

from reft_interventions import InterventionSet, dumps
from reft_server.tenants import SCOPES, TenantDirectory
from tests.intervention_sets import make_set

MakeClient = Callable[..., TestClient]

URL = "/v1/interventions"
TEXTS = (
    "../../etc/passwd",
    "..\\..\\windows",
    "/etc/cron.d/x",
    "a\x00b",
    "a\r\nx-injected: 1",
    "a\nlevel=ERROR event=forged",
    "\x1b[31mred",
    "\u202egnp.exe",
    "\u0430dmin",  # a Cyrillic letter
    "\uff53tyle",  # folds to ASCII under NFKC
    "{{7*7}}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{x}}{% endfor %}",
    "${jndi:ldap://localhost/x}",
    "%s%s%s%n",
    "'; DROP TABLE tenants; --",
    "' OR '1'='1",
    '"; filename="evil.sh',
    "<script>alert(1)</script>",
    "$(touch /tmp/x)",
    "con",  # a device of Windows
    "a" * 5000,
)


def is_clean_refusal(response: Any, *statuses: int) -> bool:
    """A refusal by name: JSON, one printable line, no header that the text made."""
    error = json.loads(response.text)["error"]
    assert response.status_code in statuses, (response.status_code, error)
    assert error["message"].isprintable()
    return "x-injected" not in response.headers and response.headers["content-type"] == "application/json"


def all_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.name.endswith(("-shm", "-wal"))}


def test_hostile_name_is_refused_wherever_it_stands(client: TestClient, tmp_path: Path) -> None:
    before, content = all_files(tmp_path), dumps(make_set(0))
    for text in TEXTS:
        in_path = quote(text, safe="")
        assert is_clean_refusal(client.post(URL, params={"name": text}, content=content), 400), text
        assert is_clean_refusal(client.post(URL, data={"name": text}, files={"file": ("x", content)}), 400), text
        for path in ("{}", "{}/versions", "{}/download", "{}/grants", "style?version={}", "style?tenant={}"):
            assert is_clean_refusal(client.get(f"{URL}/{path.format(in_path)}"), 400, 404), (path, text)
        assert is_clean_refusal(client.delete(f"{URL}/{in_path}"), 400, 404), text
        assert is_clean_refusal(client.get(f"/v1/models/{in_path}"), 404), text
        for field in ("model", "intervention"):
            body = {"prompt": "a", "max_tokens": 1, field: text}
            assert is_clean_refusal(client.post("/v1/completions", json=body), 400, 404), text
    assert all_files(tmp_path) == before


def test_hostile_file_name_names_nothing(client: TestClient, tmp_path: Path) -> None:
    before = {path.name for path in all_files(tmp_path)}
    for text in TEXTS:
        head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="' + text.encode() + b'"\r\n\r\n'
        response = client.post(
            URL,
            params={"name": "style"},
            content=head + dumps(make_set(0)) + b"\r\n--edge--\r\n",
            headers={"content-type": "multipart/form-data; boundary=edge"},
        )
        assert response.status_code == 201 or is_clean_refusal(response, 400), text
    disposition = client.get(f"{URL}/style/download").headers["content-disposition"]
    assert re.fullmatch(r'attachment; filename="style-v\d+\.safetensors"', disposition)
    new = {path.name for path in all_files(tmp_path)} - before
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) and "passwd" not in name for name in new)


def test_text_of_a_manifest_comes_back_as_data(client: TestClient) -> None:
    original = make_set(0)
    for text in (text for text in TEXTS if len(text) <= 256):
        fields = {"name": text, "description": text, "license": text, "training": {text: [text]}}
        changed = InterventionSet.create(original.manifest.model_copy(update=fields), original.parameters)
        assert client.post(URL, params={"name": "style"}, content=dumps(changed)).status_code == 201, text
        response = client.get(f"{URL}/style")
        assert "x-injected" not in response.headers
        assert response.json()["name"] == "style"
        assert client.get(f"{URL}/style/download").content == dumps(changed)


def test_hostile_header_is_neither_echoed_nor_obeyed(client: TestClient) -> None:
    for text in TEXTS:
        value = text.encode().translate(None, b"\x00\r\n")  # which no HTTP server lets through
        names = ("x-request-id", "traceparent", "accept", "user-agent", "x-forwarded-for")
        response = client.get("/v1/models", headers=dict.fromkeys(names, value))
        assert response.status_code == 200
        is_sane = re.fullmatch(rb"[A-Za-z0-9]{1,128}", value) is not None
        assert (response.headers["x-request-id"].encode() == value) == is_sane, text
        assert response.headers["x-content-type-options"] == "nosniff"


def test_message_is_text_for_the_chat_template(client: TestClient) -> None:
    for text in TEXTS:
        body = {"messages": [{"role": "user", "content": text[:100]}]}
        tokens = client.post("/tokenize", json=body).json()["tokens"]
        assert text[:100] in client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]


def test_text_of_a_request_is_no_label_of_a_metric(client: TestClient) -> None:
    for text in TEXTS:
        body = {"prompt": "a", "max_tokens": 1, "user": text[:500], "cache_salt": text[:500]}
        assert client.post("/v1/completions", json=body).status_code == 200
    metrics = client.get("/metrics").text
    assert not any(text in metrics for text in TEXTS if text != "con")
    assert all(line.startswith(("#", "reft:", "python_", "process_")) for line in metrics.splitlines())


def test_hostile_alias_label_task_and_page_are_data_or_refused(client: TestClient) -> None:
    assert client.post(URL, params={"name": "style"}, content=dumps(make_set(0))).status_code == 201
    for text in TEXTS:
        in_path = quote(text, safe="")
        if text != "con":  # which no file is named by
            put = client.put(f"{URL}/style/aliases/{in_path}", json={"version": 1})
            assert is_clean_refusal(put, 400, 404), text
            route = client.put(f"/v1/routes/{in_path}", json={"targets": [{"intervention": "style"}]})
            assert is_clean_refusal(route, 400, 404), text
            assert is_clean_refusal(client.patch(f"{URL}/style", json={"labels": {text: "x"}}), 400), text
        patched = client.patch(f"{URL}/style", json={"labels": {"team": text}, "description": text})
        if patched.status_code == 200:
            shown = client.get(f"{URL}/style").json()
            assert (shown["labels"]["team"], shown["description"]) == (text, text)
        else:
            assert is_clean_refusal(patched, 400), text
        for query in ({"label": text}, {"label": f"team={text}"}, {"after": text}):
            listed = client.get(URL, params=query)
            assert listed.status_code == 200 or is_clean_refusal(listed, 400), (query, text)
        value = text.encode().translate(None, b"\x00\r\n")
        conditional = dict.fromkeys(("if-match", "if-none-match"), value)
        assert client.get(f"{URL}/style/download", headers=conditional).status_code in (200, 400, 412)
        answer = client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, "task": text})
        assert is_clean_refusal(answer, 400, 404), text


def test_query_may_have_many_keys_but_none_twice(client: TestClient) -> None:
    query = "&".join(f"k{index}=" for index in range(8000))
    response = client.get(f"{URL}?{query}")
    assert response.status_code == 200
    assert is_clean_refusal(client.get(f"{URL}?{query}&k0="), 400)


def test_hostile_text_is_no_fault_of_any_database(make_client: MakeClient, tmp_path: Path, database_url: str) -> None:
    directory = TenantDirectory.of_store(tmp_path, database_url=database_url)
    directory.open()
    client = make_client(directory=directory)
    client.headers["authorization"] = f"Bearer {directory.create_key('', SCOPES)[1].text}"
    assert client.post(URL, params={"name": "style"}, content=dumps(make_set(0))).status_code == 201
    route = {"targets": [{"intervention": "style"}]}
    for text in TEXTS:
        in_path = quote(text, safe="")
        headers = {"idempotency-key": text.encode().translate(None, b"\x00\r\n")}
        answers = [
            client.patch(f"{URL}/style", json={"labels": {"team": text}, "description": text[:1024]}),
            client.put(f"{URL}/style/card", content=text.encode(), headers={"content-type": "text/markdown"}),
            client.put(f"{URL}/style/card", content=json.dumps(text), headers={"content-type": "application/json"}),
            client.post(f"{URL}?name=style", content=dumps(make_set(1)), headers=headers),
            client.put("/v1/routes/support", json={**route, "description": text[:256]}),
            client.post("/v1/admin/tenants", json={"name": text}),
            client.post("/v1/admin/tenants/shared/keys", json={"scopes": ["infer"], "description": text[:256]}),
            client.delete(f"/v1/admin/keys/{in_path}"),
            client.post(
                "/v1/completions", json={"prompt": "a", "max_tokens": 1, "user": text[:500], "task": "support"}
            ),
            *(
                client.get(path, params={key: text})
                for path in (URL, "/v1/admin/audit", "/v1/admin/audit/export", "/v1/models")
                for key in ("tenant", "action", "label", "after", "version")
            ),
            *(
                client.get(f"{path}/{in_path}")
                for path in (URL, "/v1/routes", "/v1/admin/tenants", f"{URL}/style/aliases", "/v1/models")
            ),
            client.get(f"/v1/routes/{in_path}/revisions"),
            client.put(f"{URL}/style/grants/{in_path}"),
        ]
        faults = [(answer.request.url, answer.text) for answer in answers if answer.status_code >= 500]
        assert not faults, (text, faults)
