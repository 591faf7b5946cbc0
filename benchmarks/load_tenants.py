"""The tenants of `benchmarks.load`: keys, sets that only they have under the same names, and their known answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.adapter_files import write_random_set
from benchmarks.soak_traffic import COMPLETIONS, INTERVENTIONS, POSITIONS, QUESTIONS, SYSTEM, canary_body

NUM_TENANTS = 4
NUM_QUESTIONS = 5
SETS_PER_TENANT = 3
HOUSE, TASK = "house", "support"
"""The operator's set, which everybody may use; and the task that every tenant has a route for."""
LEAST_MARGIN = 0.02
"""Of a known answer's tokens over the runners-up, in log probability: far above what rounding moves."""


@dataclass
class Tenant:
    """One tenant, and what an answer to it may come from.

    Args:
        contents: files: of `style`, and of `swap`'s two contents in turn.
        hashes: of these, and of the operator's set, by where they are used.
    """

    name: str
    key: str
    contents: list[bytes]
    hashes: dict[str, frozenset[str]] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def selectors(self) -> list[tuple[dict[str, Any], frozenset[str]]]:
        """Ways to name what answers, each with the content hashes that may then answer; none = the base model."""
        style, swap = self.hashes["style"], self.hashes["swap"]
        return [
            ({}, frozenset()),
            ({"model": "style"}, style),
            ({"intervention": "style"}, style),
            ({"intervention": "swap"}, swap),
            ({"intervention": "swap@prod"}, swap),
            ({"intervention": f"{self.name}/swap"}, swap),
            ({"task": TASK}, style | swap),
            ({"task": TASK}, style | swap),
            ({"intervention": HOUSE}, self.hashes[HOUSE]),
        ]

    def route(self, weights: tuple[int, int], *, has_shadow: bool) -> dict[str, Any]:
        """A definition of the task's route."""
        names = ("style", "swap@prod")
        targets = [{"intervention": name, "weight": weight} for name, weight in zip(names, weights, strict=True)]
        return {"targets": targets, **({"shadow": {"intervention": "swap", "fraction": 0.1}} if has_shadow else {})}


@dataclass(frozen=True)
class World:
    """All tenants, and the known greedy answers by content hash (empty = the base model) and prompt."""

    tenants: list[Tenant]
    answers: Mapping[tuple[str, str], str]

    def num_telling(self) -> int:
        """Known answers that no other content gives to the same prompt: the wrong tenant's would show."""
        by_answer: dict[tuple[str, str], int] = {}
        for (_, prompt), text in self.answers.items():
            by_answer[prompt, text] = by_answer.get((prompt, text), 0) + 1
        return sum(by_answer[prompt, text] == 1 for (_, prompt), text in self.answers.items())


async def build_world(client: httpx.AsyncClient, operator: dict[str, str], folder: Path) -> World:
    """Make tenants, keys, sets, aliases and routes over HTTP, and ask every known question once, one by one."""
    house = _content(folder, 1000)
    house_hash = await _upload(client, operator, HOUSE, house)
    tenants = []
    for index in range(NUM_TENANTS):
        contents = [_content(folder, SETS_PER_TENANT * index + each) for each in range(SETS_PER_TENANT)]
        tenants.append(await _tenant(client, operator, f"tenant-{index}", contents, house_hash))
    answers: dict[tuple[str, str], str] = {}
    for tenant in tenants:
        hashes = tenant.hashes["style"] | tenant.hashes["swap"]
        names = {content_hash: name for name in ("style", "swap") for content_hash in tenant.hashes[name]}
        for content_hash in sorted(hashes):
            await _ask(client, tenant, content_hash, f"{names[content_hash]}@{content_hash}", answers)
    await _ask(client, tenants[0], house_hash, HOUSE, answers)
    await _ask(client, tenants[0], "", None, answers)
    return World(tenants, answers)


async def _tenant(
    client: httpx.AsyncClient, operator: dict[str, str], name: str, contents: list[bytes], house_hash: str
) -> Tenant:
    (await client.post("/v1/admin/tenants", json={"name": name}, headers=operator)).raise_for_status()
    body = {"scopes": ["infer", "upload"]}
    made = await client.post(f"/v1/admin/tenants/{name}/keys", json=body, headers=operator)
    tenant = Tenant(name, made.raise_for_status().json()["key"], contents)
    style = await _upload(client, tenant.headers, "style", contents[0])
    swaps = [await _upload(client, tenant.headers, "swap", content) for content in contents[1:]]
    tenant.hashes = {
        "style": frozenset({style}),
        "swap": frozenset(swaps),
        HOUSE: frozenset({house_hash}),
    }
    alias, route = f"{INTERVENTIONS}/swap/aliases/prod", f"/v1/routes/{TASK}"
    (await client.put(alias, json={"version": 1}, headers=tenant.headers)).raise_for_status()
    definition = tenant.route((1, 1), has_shadow=False)
    (await client.put(route, json=definition, headers=tenant.headers)).raise_for_status()
    return tenant


def _content(folder: Path, seed: int) -> bytes:
    path = folder / f"{seed}.safetensors"
    write_random_set(path, seed, positions=POSITIONS[seed % len(POSITIONS)])
    return path.read_bytes()


async def _upload(client: httpx.AsyncClient, headers: dict[str, str], name: str, content: bytes) -> str:
    response = await client.post(INTERVENTIONS, params={"name": name}, content=content, headers=headers)
    return str(response.raise_for_status().json()["content_hash"])


async def _ask(
    client: httpx.AsyncClient,
    tenant: Tenant,
    content_hash: str,
    name: str | None,
    answers: dict[tuple[str, str], str],
) -> None:
    """Keep the answers whose every token wins clearly."""
    for question in QUESTIONS[:NUM_QUESTIONS]:
        body = {**canary_body(SYSTEM + question, name), "logprobs": 2}
        response = await client.post(COMPLETIONS, json=body, headers=tenant.headers)
        choice = response.raise_for_status().json()["choices"][0]
        if min(_margin(tops) for tops in choice["logprobs"]["top_logprobs"]) >= LEAST_MARGIN:
            answers[content_hash, SYSTEM + question] = choice["text"]
        await asyncio.sleep(0)


def _margin(top_logprobs: dict[str, float]) -> float:
    first, *rest = sorted(top_logprobs.values(), reverse=True)
    return first - (rest[0] if rest else -math.inf)
