"""The traffic of `benchmarks.load`: streams that are checked, disconnects, bad requests, and changes while they run."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from benchmarks.load_tenants import TASK, Tenant, World
from benchmarks.soak_traffic import COMPLETIONS, INTERVENTIONS, bad_requests, canary_body

DISCONNECTS, BAD = 0.10, 0.05
"""Shares of the requests."""
RANDOM_PROMPTS = 0.25
BUSY_CODES = frozenset({"engine_overloaded", "rate_limit_exceeded"})
BUSY_PAUSE_S = 0.5


class Traffic:
    """Everything that is sent, counted by outcome; one that starts with `unexpected` is a fault."""

    def __init__(self, client: httpx.AsyncClient, world: World) -> None:
        self.outcomes: Counter[str] = Counter()
        self.num_checked_texts = 0
        self._client = client
        self._world = world

    async def act(self, tenant: Tenant, rng: random.Random) -> None:
        """One request of a streaming client."""
        draw = rng.random()
        action = self._bad if draw < BAD else self._disconnect if draw < BAD + DISCONNECTS else self._answer
        await self._count(action, tenant, rng)

    async def change(self, tenant: Tenant, rng: random.Random) -> None:
        """One change of a tenant's sets, aliases or routes, or a look at its lists."""
        actions = (self._swap, self._move_alias, self._set_route, self._roll_back, self._delete_and_restore, self._list)
        await self._count(rng.choice(actions), tenant, rng)
        await asyncio.sleep(rng.uniform(0.1, 1.0))

    async def _count(
        self, action: Callable[[Tenant, random.Random], Awaitable[str]], tenant: Tenant, rng: random.Random
    ) -> None:
        try:
            outcome = await action(tenant, rng)
        except httpx.TimeoutException:
            outcome = "unexpected: no end"
        except httpx.TransportError as error:
            outcome = f"unexpected: {action.__name__} {type(error).__name__}"
        self.outcomes[outcome] += 1
        if outcome.startswith("busy"):
            await asyncio.sleep(BUSY_PAUSE_S)

    def _body(self, tenant: Tenant, rng: random.Random) -> tuple[dict[str, Any], frozenset[str], str | None]:
        """A request, the contents that may answer it, and its prompt if the answer is known."""
        selector, allowed = rng.choice(tenant.selectors())
        routing = {"routing_key": f"user-{rng.randrange(50)}"} if "task" in selector else {}
        if rng.random() < RANDOM_PROMPTS:
            prompt = [rng.randrange(100, 49_000) for _ in range(rng.randint(1, 256))]
            body = {"prompt": prompt, "max_tokens": rng.randint(1, 32), "temperature": rng.choice([0, 0.8])}
            return {**body, **selector, **routing, "stream": True}, allowed, None
        prompt = rng.choice([prompt for _, prompt in self._world.answers])
        body = {name: value for name, value in canary_body(prompt, None).items() if value is not None}
        return {**body, **selector, **routing, "stream": True}, allowed, prompt

    async def _answer(self, tenant: Tenant, rng: random.Random) -> str:
        body, allowed, prompt = self._body(tenant, rng)
        async with self._client.stream("POST", COMPLETIONS, json=body, headers=tenant.headers) as response:
            if response.status_code != 200:
                return await _refusal(response, set())
            events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line.startswith("data: ")]
        if not events or events[-1] != "[DONE]":
            return f"unexpected: the stream ended with {str(events[-1:])[:200]}"
        chunks = [json.loads(event) for event in events[:-1]]
        failed = [chunk["error"]["code"] for chunk in chunks if "error" in chunk]
        if failed:
            return f"busy: {failed[0]} in the stream" if failed[0] in BUSY_CODES else f"unexpected: {failed[0]}"
        return self._judged(tenant, response, chunks, allowed, prompt)

    def _judged(
        self,
        tenant: Tenant,
        response: httpx.Response,
        chunks: list[dict[str, Any]],
        allowed: frozenset[str],
        prompt: str | None,
    ) -> str:
        """Whether the right content answered: by what the answer says, by its headers, and by its text."""
        applied = chunks[0].get("intervention") or []
        hashes = [one["content_hash"] for one in applied]
        in_header = response.headers.get("x-reft-content-hash", "")
        if len(hashes) != bool(allowed) or not allowed.issuperset(hashes) or in_header != ", ".join(hashes):
            return f"unexpected: WRONG CONTENT for {tenant.name}: {hashes} {in_header}"
        text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
        known = None if prompt is None else self._world.answers.get((hashes[0] if hashes else "", prompt))
        if known is None:
            return "answered"
        self.num_checked_texts += 1
        return "answered, text as known" if text == known else f"unexpected: ANOTHER TEXT for {tenant.name}: {text!r}"

    async def _disconnect(self, tenant: Tenant, rng: random.Random) -> str:
        body, num_chunks = self._body(tenant, rng)[0], rng.randint(0, 6)
        async with self._client.stream("POST", COMPLETIONS, json=body, headers=tenant.headers) as response:
            if response.status_code != 200:
                return await _refusal(response, set())
            async for _ in response.aiter_raw():
                num_chunks -= 1
                if num_chunks < 0:
                    return "disconnected"
        return "answered before the disconnect"

    async def _bad(self, tenant: Tenant, rng: random.Random) -> str:
        others = [other for other in self._world.tenants if other is not tenant]
        other = rng.choice(others).name
        hi = {"prompt": "hi", "max_tokens": 1}
        method, path, options, statuses = rng.choice(
            [
                *(("POST", *request) for request in bad_requests(tenant.contents[0])),
                ("POST", COMPLETIONS, {"json": {**hi, "model": f"{other}/style"}}, {404}),
                ("POST", COMPLETIONS, {"json": {**hi, "intervention": f"{other}/swap@prod"}}, {404}),
                ("POST", COMPLETIONS, {"json": {**hi, "task": "nobody-s"}}, {404}),
                ("GET", f"{INTERVENTIONS}/style", {"params": {"tenant": other}}, {404}),
                ("GET", f"{INTERVENTIONS}/style/download", {"params": {"tenant": other}}, {404}),
                ("PUT", f"/v1/routes/{TASK}", {"json": {"targets": [{"intervention": f"{other}/style"}]}}, {404}),
                ("GET", "/v1/admin/tenants", {}, {403}),
                ("GET", "/v1/models", {"headers": {"authorization": f"Bearer {tenant.key[:-1]}_"}}, {401}),
                ("GET", "/v1/models", {"headers": {}}, {401}),
            ]
        )
        response = await self._client.request(method, path, **{"headers": tenant.headers, **options})
        outcome = await _refusal(response, statuses)
        return f"{outcome} for {path} {str(options)[:80]}" if outcome.startswith("unexpected") else outcome

    async def _swap(self, tenant: Tenant, rng: random.Random) -> str:
        params, content = {"name": "swap"}, rng.choice(tenant.contents[1:])
        response = await self._client.post(INTERVENTIONS, params=params, content=content, headers=tenant.headers)
        return "changed: upload" if response.is_success else await _refusal(response, {409})

    async def _move_alias(self, tenant: Tenant, rng: random.Random) -> str:
        path = f"{INTERVENTIONS}/swap/aliases/prod"
        if rng.random() < 0.5:
            response = await self._client.post(f"{path}/rollback", headers=tenant.headers)
        else:
            response = await self._client.put(path, json={"version": rng.randint(1, 2)}, headers=tenant.headers)
        return "changed: alias" if response.is_success else await _refusal(response, {409})

    async def _set_route(self, tenant: Tenant, rng: random.Random) -> str:
        body = tenant.route(rng.choice([(1, 0), (0, 1), (9, 1), (1, 1)]), has_shadow=rng.random() < 0.3)
        response = await self._client.put(f"/v1/routes/{TASK}", json=body, headers=tenant.headers)
        return "changed: route" if response.is_success else await _refusal(response, set())

    async def _roll_back(self, tenant: Tenant, _: random.Random) -> str:
        response = await self._client.post(f"/v1/routes/{TASK}/rollback", headers=tenant.headers)
        return "changed: rollback" if response.is_success else await _refusal(response, {404})

    async def _delete_and_restore(self, tenant: Tenant, rng: random.Random) -> str:
        params, content = {"name": "churn"}, rng.choice(tenant.contents)
        for method, path, options in (
            ("POST", INTERVENTIONS, {"params": params, "content": content}),
            ("DELETE", f"{INTERVENTIONS}/churn", {}),
            ("POST", f"{INTERVENTIONS}/churn/restore", {}),
        ):
            response = await self._client.request(method, path, headers=tenant.headers, **options)
            if not response.is_success:
                return await _refusal(response, {409})
        return "changed: deleted and restored"

    async def _list(self, tenant: Tenant, _: random.Random) -> str:
        response = await self._client.get(INTERVENTIONS, headers=tenant.headers)
        if not response.is_success:
            return await _refusal(response, set())
        owners = {info["tenant"] for info in response.json()["data"]}
        return "listed" if owners <= {tenant.name, "shared"} else f"unexpected: {tenant.name} sees sets of {owners}"


async def _refusal(response: httpx.Response, expected: set[int]) -> str:
    """The outcome of an answer that is no success: its code, where it is one that may come now."""
    try:
        code = json.loads(await response.aread())["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return f"unexpected: status {response.status_code} without an error object"
    if response.status_code == 429 and code in BUSY_CODES:
        return f"busy: {code}"
    return f"{'refused' if response.status_code in expected else 'unexpected'}: {response.status_code} {code}"
