"""Two real server processes with folders of their own, on one PostgreSQL and one S3 server: what one does, both do."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from reft_server.tenants import SHARED, TenantDirectory
from tests.e2e.conftest import wait_for_url
from tests.postgres import Postgres
from tests.s3_server import CREDENTIALS, S3Server

MakeFile = Callable[..., bytes]
NOTICED_S = 2.0
"""Within which a server notices what another one changed."""


@dataclass(frozen=True)
class Pair:
    """Two servers, as clients with a tenant's key and with the operator's."""

    one: httpx.Client
    other: httpx.Client
    operator: httpx.Client
    folders: tuple[Path, Path]


def becomes(is_so: Callable[[], bool]) -> bool:
    """Whether it is so in time."""
    until = time.monotonic() + NOTICED_S
    while time.monotonic() < until:
        if is_so():
            return True
        time.sleep(0.02)
    return False


@contextmanager
def running(folder: Path, environment: dict[str, str]) -> Iterator[str]:
    """A server's URL."""
    command = [sys.executable, "-m", "reft_server.cli", "--port", "0", "--store-dir", str(folder / "store")]
    folder.mkdir()
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        try:
            yield wait_for_url(process, log)
        finally:
            process.terminate()
            process.wait(60)
            process.kill()
            process.communicate()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def pair(postgres: Postgres, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    root = tmp_path_factory.mktemp("pair")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REFT_")} | {
        **CREDENTIALS,
        "REFT_DATABASE_URL": postgres.empty_database(),
        "REFT_BLOB_URL": s3_server.empty_bucket(),
        "REFT_ENGINE_KV_CACHE_BYTES": str(128 << 20),
    }

    with closing(TenantDirectory.of_store(root, database_url=environment["REFT_DATABASE_URL"])) as directory:
        directory.create_tenant("acme")
        acme = directory.create_key("acme", ("infer", "upload"))[1].text
        operator = directory.create_key(SHARED, ("admin",))[1].text
    with ExitStack() as stack:
        urls = [stack.enter_context(running(root / name, environment)) for name in ("one", "other")]

        def client(url: str, key: str) -> httpx.Client:
            headers = {"authorization": f"Bearer {key}"}
            return stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))

        yield Pair(
            client(urls[0], acme),
            client(urls[1], acme),
            client(urls[0], operator),
            (root / "one" / "store", root / "other" / "store"),
        )


def upload(client: httpx.Client, name: str, content: bytes) -> int:
    answer = client.post("/v1/interventions", files={"file": (f"{name}.safetensors", content)}, data={"name": name})
    answer.raise_for_status()
    return int(answer.json()["version"])


def answer_of(client: httpx.Client, model: str) -> dict[str, Any]:
    body = {"model": model, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def test_upload_on_one_answers_on_the_other(pair: Pair, make_file: MakeFile) -> None:
    upload(pair.one, "style", make_file(1))
    assert becomes(lambda: pair.other.get("/v1/interventions/style").status_code == 200)
    one, other = answer_of(pair.one, "style"), answer_of(pair.other, "style")
    assert one["choices"][0]["text"] == other["choices"][0]["text"]
    assert one["intervention"] == other["intervention"]
    assert one["choices"][0]["text"] != answer_of(pair.other, "base")["choices"][0]["text"]
    assert (
        pair.other.get("/v1/interventions/style/file").content == pair.one.get("/v1/interventions/style/file").content
    )
    assert all(list(folder.rglob("*.safetensors")) for folder in pair.folders)


def test_alias_moved_on_one_is_followed_by_the_other(pair: Pair, make_file: MakeFile) -> None:
    versions = [upload(pair.one, "moving", make_file(seed)) for seed in (2, 3)]

    def answers_with(client: httpx.Client, version: int) -> Callable[[], bool]:
        params = {"version": "prod"}
        return lambda: client.get("/v1/interventions/moving", params=params).json().get("version") == version

    for version in versions:
        pair.one.put("/v1/interventions/moving/aliases/prod", json={"version": version}).raise_for_status()
        assert becomes(answers_with(pair.other, version))
        assert answer_of(pair.other, "moving@prod")["intervention"][0]["version"] == version
    pair.other.post("/v1/interventions/moving/aliases/prod/rollback").raise_for_status()
    assert becomes(answers_with(pair.one, versions[0]))


def test_deleted_on_one_is_gone_on_the_other_and_comes_back(pair: Pair, make_file: MakeFile) -> None:
    upload(pair.other, "short", make_file(4))
    assert becomes(lambda: pair.one.get("/v1/interventions/short").status_code == 200)
    pair.one.delete("/v1/interventions/short").raise_for_status()
    assert becomes(lambda: pair.other.get("/v1/interventions/short").status_code == 404)
    pair.other.post("/v1/interventions/short/restore").raise_for_status()
    assert becomes(lambda: pair.one.get("/v1/interventions/short").status_code == 200)


def test_key_revoked_on_one_is_refused_by_the_other(pair: Pair) -> None:
    made = pair.operator.post("/v1/admin/tenants/acme/keys", json={"scopes": ["infer"]})
    made.raise_for_status()
    headers = {"authorization": f"Bearer {made.json()['key']}"}
    assert becomes(lambda: pair.other.get("/v1/models", headers=headers).status_code == 200)
    pair.operator.delete(f"/v1/admin/keys/{made.json()['id']}").raise_for_status()
    assert becomes(lambda: pair.other.get("/v1/models", headers=headers).status_code == 401)
