"""Keys against the real server: made by the command, used by OpenAI's SDK and ours, ended while the server runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from reft_client import ReftClient

MakeFile = Callable[..., bytes]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("REFT_")}
NOTICED_S = 2.0
"""Within which a server notices what another process changed."""


@dataclass(frozen=True)
class Closed:
    """A server that listens on every address, with keys of two tenants."""

    url: str
    store: Path
    acme: str
    bank: str


def keys(store: Path, *arguments: str) -> str:
    """`reft-serve keys ...`; what it prints."""
    command = [sys.executable, "-m", "reft_server.cli", "keys", *arguments, "--store-dir", str(store)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    folder = tmp_path_factory.mktemp("tenants")
    store = folder / "store"
    acme, bank = keys(store, "create", "acme"), keys(store, "create", "bank")
    command = [sys.executable, "-m", "reft_server.cli", "--host", "0.0.0.0", "--port", "0", "--store-dir", str(store)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT)
        try:
            found = (re.search(r"ready on (http://[\d.:]+)", line) for line in process.stdout or ())
            url = next((match[1] for match in found if match), None)
            assert url, (folder / "log").read_text()
            yield Closed(url, store, acme, bank)
        finally:
            process.terminate()
            process.wait(60)
            process.kill()
            process.communicate()
    logged = (folder / "log").read_text()
    assert "Traceback" not in logged
    assert not any(key.split("-", 2)[2] in logged for key in (acme, bank))


def test_unmodified_sdk_with_a_key_uses_its_tenants_sets(closed: Closed, make_file: MakeFile, tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    path.write_bytes(make_file(1))
    with ReftClient(closed.url, api_key=closed.acme) as client:
        client.interventions.upload(path, "style")
        assert client.complete("Hi", model="style", max_tokens=2).intervention is not None
    with openai.OpenAI(base_url=f"{closed.url}/v1", api_key=closed.acme, max_retries=0) as sdk:
        assert "style" in [model.id for model in sdk.models.list()]
        assert sdk.completions.create(model="style", prompt="Hi", max_tokens=2).choices[0].text
    with openai.OpenAI(base_url=f"{closed.url}/v1", api_key=closed.bank, max_retries=0) as other:
        assert "style" not in [model.id for model in other.models.list()]
        with pytest.raises(openai.NotFoundError):
            other.completions.create(model="acme/style", prompt="Hi", max_tokens=2)
        httpx.put(
            f"{closed.url}/v1/interventions/style/grants/bank", headers={"authorization": f"Bearer {closed.acme}"}
        ).raise_for_status()
        assert other.completions.create(model="acme/style", prompt="Hi", max_tokens=2).choices[0].text
    with ReftClient(closed.url, api_key=closed.bank) as client:
        assert client.interventions.get("acme/style").tenant == "acme"


def test_sdk_without_a_valid_key_is_refused(closed: Closed) -> None:
    with (
        openai.OpenAI(base_url=f"{closed.url}/v1", api_key="none", max_retries=0) as sdk,
        pytest.raises(openai.AuthenticationError),
    ):
        sdk.completions.create(model="base", prompt="Hi", max_tokens=2)


def test_tenants_find_none_of_each_others_prefixes(closed: Closed) -> None:
    prompt = "A prompt that is longer than a block of the cache, so that a part of it is found again. " * 4

    def cached_tokens(key: str) -> int:
        with openai.OpenAI(base_url=f"{closed.url}/v1", api_key=key, max_retries=0) as sdk:
            usage = sdk.completions.create(model="base", prompt=prompt, max_tokens=1).usage
        assert usage is not None
        assert usage.prompt_tokens_details is not None
        return usage.prompt_tokens_details.cached_tokens or 0

    assert cached_tokens(closed.acme) == 0
    assert cached_tokens(closed.acme) > 16
    assert cached_tokens(closed.bank) == 0


def test_key_made_and_revoked_beside_the_running_server_is_noticed_in_time(closed: Closed) -> None:
    key = keys(closed.store, "create", "acme", "--scopes", "infer")
    headers = {"authorization": f"Bearer {key}"}

    def status_becomes(wanted: int) -> bool:
        until = time.monotonic() + NOTICED_S
        while time.monotonic() < until:
            if httpx.get(f"{closed.url}/v1/models", headers=headers).status_code == wanted:
                return True
            time.sleep(0.02)
        return False

    assert status_becomes(200)
    keys(closed.store, "revoke", key.split("-")[1])
    assert status_becomes(401)
