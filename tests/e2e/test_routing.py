"""Ten tasks for three tenants in flight while their routes change: nothing is lost, all answers are the reference's.

The server is a process of its own with the default model, the trained examples are the shared sets, and OpenAI's SDK
asks. What an answer must be comes from the plain model with hooks, for the sets whose hashes its headers name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reft_client import AsyncReftClient
from reft_client.types import RouteInfo, RouteTarget
from reft_interventions import FileLimits, InterventionSet
from reft_interventions.file_format import load
from reft_server.base_model import default_model_path
from reft_server.tenants import SCOPES, SHARED, TenantDirectory
from tests.e2e.conftest import MakeFile
from tests.parity.harness import TOLERANCE, Case, Expected, Use, reference

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("REFT_")}
TENANTS = ("acme", "bank", "city")
TASKS = (*(f"task-{number}" for number in range(8)), "swap", "year")
"""Eight whose routes go to and fro, one whose set is replaced and deleted, and one that only the operator routes."""
PROMPTS = ("The word seagull means a kind of", "The war lasted from the year 1732 to the year 17")
SOURCE = "The war lasted from the year 1772 to the year 17"
MAX_TOKENS = 5
NUM_WORKERS = 4
"""Of each tenant."""
NUM_CHANGES = 40
NUM_AFTER = 4
"""Tasks that each worker must still ask for after the last change."""

Menu = Sequence[list[dict[str, Any]]]


@dataclass(frozen=True)
class Answer:
    """What came back, as headers and body say."""

    tenant: str
    task: str
    user: str
    prompt: tuple[int, ...]
    route: str
    hashes: tuple[str, ...]
    scales: tuple[float, ...]
    names: tuple[str, ...]
    token_ids: list[int]


@dataclass
class World:
    """A server with keys, and everything that its routes ever said.

    Args:
        keys: by tenant; the operator's is that of `shared`.
        sets: by content hash.
        owners: of content hashes that are not shared.
        hashes: what `owner/name@version` is.
        revisions: the targets that `owner/task@revision` had, as the hashes and scales that they stand for.
    """

    url: str
    keys: dict[str, str]
    sets: dict[str, InterventionSet] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, set[tuple[tuple[str, float], ...]]] = field(default_factory=lambda: defaultdict(set))

    def client(self, tenant: str) -> AsyncReftClient:
        return AsyncReftClient(self.url, self.keys[tenant], timeout_s=120)

    async def upload(self, client: AsyncReftClient, tenant: str, name: str, path: Path) -> int:
        """Upload a set that only this tenant has."""
        stored = await client.interventions.upload(path, name)
        self.sets[stored.content_hash] = load(path, FileLimits())
        self.owners[stored.content_hash] = tenant
        self.hashes[f"{tenant}/{name}@{stored.version}"] = stored.content_hash
        return stored.version

    def note(self, route: RouteInfo) -> None:
        """Remember what a revision says."""
        said = self.revisions[f"{route.tenant}/{route.task}@{route.revision}"]
        said |= {self._meaning(route.tenant, target) for target in route.targets if target.weight}

    def _meaning(self, tenant: str, target: RouteTarget) -> tuple[tuple[str, float], ...]:
        def hash_of(name: str, version: object) -> str:
            own = self.hashes.get(f"{tenant}/{name}@{version or 1}")
            return own or self.hashes[f"shared/{name.removeprefix('shared/')}@{version or 1}"]

        return tuple((hash_of(ref.name, ref.version), ref.scale) for ref in target.intervention_refs())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    tmp_path = tmp_path_factory.mktemp("routing")
    store = tmp_path / "store"
    with closing(TenantDirectory.of_store(store)) as directory:
        directory.open()
        for tenant in TENANTS:
            directory.create_tenant(tenant)
        keys = {tenant: directory.create_key(tenant, ("infer", "upload"))[1].text for tenant in TENANTS}
        keys["shared"] = directory.create_key(SHARED, SCOPES)[1].text
    preload = tmp_path / "preload"
    preload.mkdir()
    for path in EXAMPLES.glob("*/*.safetensors"):
        (preload / path.name).symlink_to(path)
    command = [sys.executable, "-m", "reft_server.cli", "--port", "0", "--store-dir", str(store)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--preload-dir", str(preload)], stdout=subprocess.PIPE, stderr=log, text=True, env=ENVIRONMENT
        )
        try:
            found = (re.search(r"ready on (http://[\d.:]+)", line) for line in process.stdout or ())
            url = next((match[1] for match in found if match), None)
            assert url, (tmp_path / "log").read_text()
            yield World(url, keys)
        finally:
            process.terminate()
            process.wait(60)
            process.kill()
            process.communicate()
    logged = (tmp_path / "log").read_text()
    assert "Traceback" not in logged
    assert "shadow_ended" in logged


def test_ten_tasks_of_three_tenants_lose_nothing_while_routes_change(
    world: World, make_file: MakeFile, tmp_path: Path
) -> None:
    for path in sorted(EXAMPLES.glob("*/*.safetensors")):
        example = load(path, FileLimits())
        world.sets[example.content_hash] = example
        world.hashes[f"shared/{example.manifest.name}@1"] = example.content_hash
    seeds = itertools.count(100)

    def new_file() -> Path:
        path = tmp_path / f"{next(seeds)}.safetensors"
        path.write_bytes(make_file(int(path.stem)))
        return path

    answers = asyncio.run(_load(world, new_file))
    assert {(answer.tenant, answer.task) for answer in answers} == set(itertools.product(TENANTS, TASKS))
    assert len({answer.route for answer in answers}) > NUM_CHANGES / 2
    targets_of_a_key: defaultdict[tuple[str, ...], set[tuple[str, ...]]] = defaultdict(set)
    for answer in answers:
        owner = "shared" if answer.route.startswith("shared/") else answer.tenant
        revision = f"{owner}/{answer.route.removeprefix('shared/')}"
        assert answer.route.removeprefix("shared/").startswith(f"{answer.task}@")
        used = tuple(zip(answer.hashes, answer.scales, strict=True))
        assert used in world.revisions[revision], (revision, answer.names)
        assert {world.owners.get(one, answer.tenant) for one in answer.hashes} <= {answer.tenant}
        assert answer.token_ids == _like_the_reference(world, answer)
        targets_of_a_key[answer.tenant, answer.user, revision].add(answer.hashes)
    assert all(len(targets) == 1 for targets in targets_of_a_key.values()), "a key changed its target"


async def _load(world: World, new_file: Any) -> list[Answer]:
    """Every worker of every tenant asks for one task after the other, twice each, while routes change."""
    changed = asyncio.Event()
    operator = world.client("shared")
    year = {"intervention": {"name": "greater-than", "source": SOURCE}}
    world.note(await operator.routes.set("year", [year]))
    clients = {tenant: world.client(tenant) for tenant in TENANTS}
    menus = dict(zip(TENANTS, [await _prepare(world, clients[t], t, new_file) for t in TENANTS], strict=True))
    workers = [
        asyncio.create_task(_work(world, tenant, f"user-{number}", changed))
        for tenant in TENANTS
        for number in range(NUM_WORKERS)
    ]
    try:
        await _change(world, clients, menus, new_file)
    finally:
        changed.set()
        answers = await asyncio.gather(*workers)
        for client in (operator, *clients.values()):
            await client.close()
    return [answer for some in answers for answer in some]


async def _prepare(world: World, client: AsyncReftClient, tenant: str, new_file: Any) -> Menu:
    """Sets of the same names in each tenant's namespace, `shout` among them, which is a shared one's name too."""
    for name in ("one", "two", "shout", "swap"):
        await world.upload(client, tenant, name, new_file())
    one, two = {"intervention": "one@1"}, {"intervention": "two"}
    menu: Menu = [
        [one],
        [{**one, "weight": 3}, {**two, "weight": 1}],
        [{"intervention": ["one", {"name": "two", "scale": 0.5}]}],
        [{"intervention": "shout"}, {"intervention": "shared/shout"}],
        [{"intervention": "word-category"}],
        [{"intervention": {"name": "spam", "scale": 0.5}}, {}],
    ]
    for number, task in enumerate(TASKS[:8]):
        world.note(await client.routes.set(task, menu[number % len(menu)]))
    world.note(await client.routes.set("swap", "swap@1"))
    return menu


async def _change(world: World, clients: dict[str, AsyncReftClient], menus: dict[str, Menu], new_file: Any) -> None:
    chance = random.Random(7)
    for number in range(NUM_CHANGES):
        tenant = TENANTS[number % len(TENANTS)]
        client, task = clients[tenant], chance.choice(TASKS[:8])
        kind = chance.choice(("set", "set", "roll back", "swap"))
        revision = (await client.routes.get(task)).revision
        if kind == "swap":
            version = await world.upload(client, tenant, "swap", new_file())
            world.note(await client.routes.set("swap", f"swap@{version}"))
            await client.interventions.delete("swap", version - 1)
        elif kind == "roll back" and revision > 1:
            world.note(await client.routes.rollback(task))
        else:
            shadow = {"intervention": "two", "fraction": 0.5} if chance.random() < 0.5 else None
            world.note(await client.routes.set(task, chance.choice(menus[tenant]), shadow=shadow))


async def _work(world: World, tenant: str, user: str, changed: asyncio.Event) -> list[Answer]:
    answers: list[Answer] = []
    num_after = 0
    async with openai.AsyncOpenAI(
        base_url=f"{world.url}/v1", api_key=world.keys[tenant], max_retries=0, timeout=120
    ) as sdk:
        for number in itertools.count():
            if num_after >= NUM_AFTER and number >= len(TASKS):
                return answers
            num_after += changed.is_set()
            task = TASKS[(number + int(user[-1]) * 3) % len(TASKS)]
            for stream in (True, False):
                answers.append(await _ask(sdk, tenant, task, user, PROMPTS[number % len(PROMPTS)], stream))
    raise AssertionError


async def _ask(sdk: openai.AsyncOpenAI, tenant: str, task: str, user: str, prompt: str, stream: bool) -> Answer:
    """One answer, streamed with the task in a header, or whole with the task in the body."""
    options: dict[str, Any] = {"extra_body": {"task": task, "return_token_ids": True}}
    if stream:
        options = {"extra_body": {"return_token_ids": True}, "extra_headers": {"X-Reft-Task": task}, "stream": True}
    raw = await sdk.completions.with_raw_response.create(
        model="base", prompt=prompt, max_tokens=MAX_TOKENS, temperature=0, user=user, **options
    )
    parsed = raw.parse()
    chunks = [chunk async for chunk in parsed] if stream else [parsed]
    first = chunks[0].model_extra
    applied = first.get("intervention") or ()
    answer = Answer(
        tenant,
        task,
        user,
        tuple(chunks[0].choices[0].model_extra["prompt_token_ids"]),
        raw.headers["x-reft-route"],
        tuple(one for one in raw.headers.get("x-reft-content-hash", "").split(", ") if one),
        tuple(one["scale"] for one in applied),
        tuple(one for one in raw.headers.get("x-reft-intervention", "").split(", ") if one),
        [one for chunk in chunks for choice in chunk.choices for one in choice.model_extra["token_ids"]],
    )
    route = first["route"]
    assert answer.route.removeprefix("shared/") == f"{route['task']}@{route['revision']}"
    assert route["tenant"] == ("shared" if answer.route.startswith("shared/") else tenant)
    assert answer.hashes == tuple(one["content_hash"] for one in applied)
    assert answer.names == tuple(f"{one['name']}@{one['version']}" for one in applied)
    return answer


@cache
def _plain() -> tuple[Any, Any]:
    path = default_model_path()
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(path)


@cache
def _expected(prompt: tuple[int, ...], uses: tuple[Use, ...]) -> Expected:
    return reference(_plain()[0], Case(prompt, uses, MAX_TOKENS))


def _like_the_reference(world: World, answer: Answer) -> list[int]:
    """The reference's tokens; from its first tie on, the answer's."""
    source = tuple(_plain()[1](SOURCE)["input_ids"])
    uses = tuple(
        Use(world.sets[one], scale, source=source if answer.task == "year" else None)
        for one, scale in zip(answer.hashes, answer.scales, strict=True)
    )
    expected = _expected(answer.prompt, uses)
    ties = (step for step, margin in enumerate(expected.margins) if margin < TOLERANCE)
    num_sure = next(ties, len(expected.token_ids))
    return expected.token_ids[:num_sure] + answer.token_ids[num_sure:]


def test_shadow_is_counted_and_rollback_is_immediate(world: World) -> None:
    headers = {tenant: {"authorization": f"Bearer {world.keys[tenant]}"} for tenant in ("shared", "acme")}
    with httpx.Client(base_url=world.url, timeout=120) as http:
        route = {"targets": [{"intervention": "shout"}], "shadow": {"intervention": "word-category"}}
        body = {"prompt": PROMPTS[0], "max_tokens": 4, "temperature": 0, "task": "animals"}
        for intervention in ("shout", "word-category"):
            route["targets"] = [{"intervention": intervention}]
            http.put("/v1/routes/animals", json=route, headers=headers["acme"]).raise_for_status()
            answer = http.post("/v1/completions", json=body, headers=headers["acme"])
            assert answer.headers["x-reft-intervention"] == f"{intervention}@1"
            _wait_for_shadow(http, headers["shared"], "different" if intervention == "shout" else "same")
        http.post("/v1/routes/animals/rollback", headers=headers["acme"]).raise_for_status()
        answer = http.post("/v1/completions", json=body, headers=headers["acme"])
        assert answer.headers["x-reft-intervention"] == "shout@1"


def _wait_for_shadow(http: httpx.Client, headers: dict[str, str], outcome: str) -> None:
    line = f'reft:shadow_requests_total{{outcome="{outcome}",route="acme/animals"}} 1.0'
    until = time.monotonic() + 60
    while line not in (text := http.get("/metrics", headers=headers).text):
        assert time.monotonic() < until, [one for one in text.splitlines() if "shadow" in one]
        time.sleep(0.05)
