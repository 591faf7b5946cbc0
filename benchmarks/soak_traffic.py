"""Random traffic for `benchmarks.soak`: answers, cancels, swaps, bad requests, and prompts whose answer is known."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.adapter_files import write_random_set

MAX_UPLOAD_BYTES = 1 << 20
NUM_FIXED, NUM_CHURNING = 4, 16
POSITIONS = ("f3+l3", "l1", "all", "prompt")
COMPLETIONS, INTERVENTIONS = "/v1/completions", "/v1/interventions"
SYSTEM = (
    "You answer questions about the world in one short sentence. You are polite and exact. You never make anything up, "
    "and when you do not know the answer you say so. You use plain words that a child can understand, you give no "
    "lists, and you do not repeat the question. Here is the question that you have to answer now:\n"
)
QUESTIONS = (
    "What is the capital of France?",
    "How many days does a week have?",
    "Which animal says meow?",
    "What colour is the sky on a clear day?",
    "Who wrote Romeo and Juliet?",
    "What do bees make?",
    "At which temperature does water freeze?",
    "Which planet do we live on?",
)


@dataclass(frozen=True)
class Canary:
    """A greedy request whose answer is known."""

    prompt: str
    intervention: str | None
    text: str

    def body(self, intervention: str | None) -> dict[str, Any]:
        return canary_body(self.prompt, intervention)


def canary_body(prompt: str, intervention: str | None) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 12, "temperature": 0, "ignore_eos": True, "intervention": intervention}


def write_contents(folder: Path) -> list[bytes]:
    """Files of different sets, of every kind of positions."""
    contents = []
    for seed in range(NUM_FIXED + NUM_CHURNING):
        path = folder / f"{seed}.safetensors"
        write_random_set(path, seed, positions=POSITIONS[seed % len(POSITIONS)])
        contents.append(path.read_bytes())
    return contents


class Traffic:
    """Actions against one server, counted by outcome; an outcome that starts with `unexpected` is a fault.

    Args:
        contents: files of sets; the first `NUM_FIXED` are uploaded as `fixed-N` and stay.
        canaries: prompts with known answers.
    """

    def __init__(self, client: httpx.AsyncClient, contents: list[bytes], canaries: list[Canary]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._client = client
        self._contents = contents
        self._canaries = canaries
        self._weighted: list[tuple[int, Callable[[random.Random], Awaitable[str]]]] = [
            (50, self._answer),
            (15, self._cancel),
            (15, self._canary),
            (12, self._bad),
            (5, self._upload),
            (3, self._delete),
        ]

    async def act(self, rng: random.Random) -> None:
        """Do one random thing, and count how it ended."""
        weights = [weight for weight, _ in self._weighted]
        action = rng.choices([action for _, action in self._weighted], weights)[0]
        await self._count(action, rng)

    async def swap(self, rng: random.Random) -> None:
        """Upload another content under one name; its next answers must be that content's. For one worker only."""
        await self._count(self._swap, rng)

    async def _count(self, action: Callable[[random.Random], Awaitable[str]], rng: random.Random) -> None:
        try:
            outcome = await action(rng)
        except httpx.TimeoutException:
            outcome = "unexpected: no end"
        except httpx.TransportError as error:
            outcome = f"unexpected: {action.__name__} {type(error).__name__}"
        self.outcomes[outcome] += 1

    def _random_body(self, rng: random.Random) -> dict[str, Any]:
        names = [None, *(f"fixed-{i}" for i in range(NUM_FIXED)), *(f"churn-{i}" for i in range(NUM_CHURNING))]
        body: dict[str, Any] = {
            "prompt": [rng.randrange(100, 49_000) for _ in range(rng.randint(1, 384))],
            "max_tokens": rng.randint(1, 96),
            "temperature": rng.choice([0, 0.7, 1.0]),
            "ignore_eos": rng.random() < 0.5,
            "intervention": rng.choice(names),
            "user": rng.choice(["ann", "bob", "cem"]),
            "priority": rng.choice([0, 0, 1]),
            "stream": rng.random() < 0.8,
        }
        if rng.random() < 0.1:
            body["cache_salt"] = rng.choice(["red", "blue"])
        return body

    async def _answer(self, rng: random.Random) -> str:
        body = self._random_body(rng)
        response = await self._client.post(COMPLETIONS, json=body)
        if response.status_code != 200:
            return _refusal(response, {404, 429})
        if not body["stream"]:
            return "answered"
        if response.text.endswith("data: [DONE]\n\n"):
            return "answered by stream"
        return f"unexpected: stream ended with {response.text[-200:]!r}"

    async def _cancel(self, rng: random.Random) -> str:
        num_chunks, body = rng.randint(0, 8), {**self._random_body(rng), "stream": True}
        async with self._client.stream("POST", COMPLETIONS, json=body) as response:
            if response.status_code != 200:
                await response.aread()
                return _refusal(response, {404, 429})
            async for _ in response.aiter_raw():
                num_chunks -= 1
                if num_chunks < 0:
                    return "cancelled"
        return "answered before it was cancelled"

    async def _canary(self, rng: random.Random) -> str:
        canary = rng.choice(self._canaries)
        return await self._compare(canary, canary.intervention)

    async def _compare(self, canary: Canary, intervention: str | None) -> str:
        response = await self._client.post(COMPLETIONS, json=canary.body(intervention))
        if response.status_code != 200:
            return _refusal(response, {429})
        if response.json()["choices"][0]["text"] == canary.text:
            return "known answer"
        return f"unexpected: another answer under {intervention}"

    async def _swap(self, rng: random.Random) -> str:
        canary = rng.choice([canary for canary in self._canaries if canary.intervention is not None])
        content = self._contents[int(str(canary.intervention).removeprefix("fixed-"))]
        response = await self._client.post(INTERVENTIONS, params={"name": "swapped"}, content=content)
        if response.status_code != 201:
            return _refusal(response, set())
        outcome = await self._compare(canary, "swapped")
        return "known answer after a swap" if outcome == "known answer" else outcome

    async def _upload(self, rng: random.Random) -> str:
        name = f"churn-{rng.randrange(NUM_CHURNING)}"
        response = await self._client.post(INTERVENTIONS, params={"name": name}, content=rng.choice(self._contents))
        return "uploaded" if response.status_code == 201 else _refusal(response, {409})

    async def _delete(self, rng: random.Random) -> str:
        response = await self._client.delete(f"{INTERVENTIONS}/churn-{rng.randrange(NUM_CHURNING)}")
        return "deleted" if response.status_code == 200 else _refusal(response, {404, 409})

    async def _bad(self, rng: random.Random) -> str:
        path, options, statuses = rng.choice(bad_requests(self._contents[0]))
        response = await self._client.post(path, **options)
        outcome = _refusal(response, statuses)
        return f"{outcome} for {str(options)[:80]}" if outcome.startswith("unexpected") else outcome


def bad_requests(content: bytes) -> list[tuple[str, dict[str, Any], set[int]]]:
    """Path, options of the request and the statuses that it may get."""
    upload = {"params": {"name": "bad"}}
    not_a_number = content[:-4] + b"\x00\x00\xc0\x7f"
    return [
        (COMPLETIONS, {"json": {"prompt": "hi", "intervention": "nobody"}}, {404}),
        (COMPLETIONS, {"json": {"prompt": "hi", "temperature": 3}}, {400}),
        (COMPLETIONS, {"json": {"prompt": "hi", "max_tokens": -1}}, {400}),
        (COMPLETIONS, {"json": {"prompt": [10**6]}}, {400}),
        (COMPLETIONS, {"json": {"prompt": [100] * 9000}}, {400}),
        (COMPLETIONS, {"content": b'{"prompt": "hi"'}, {400}),
        (COMPLETIONS, {"content": b'{"prompt": "' + b"a" * (5 << 20) + b'"}'}, {413}),
        ("/v1/chat/completions", {"json": {"messages": []}}, {400}),
        (INTERVENTIONS, {**upload, "content": b"not a file"}, {422}),
        (INTERVENTIONS, {**upload, "content": content[:-100]}, {422}),
        (INTERVENTIONS, {**upload, "content": b"\xff" * 8 + content}, {413, 422}),
        (INTERVENTIONS, {**upload, "content": not_a_number}, {422}),
        (INTERVENTIONS, {**upload, "content": bytes(2 * MAX_UPLOAD_BYTES)}, {413}),
        (INTERVENTIONS, {"params": {"name": "NOT A NAME"}, "content": content}, {400}),
    ]


def _refusal(response: httpx.Response, expected: set[int]) -> str:
    """The outcome of an answer that is not a success: its code where its status is expected."""
    try:
        code = json.loads(response.text)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        code = "no error object"
    if response.status_code in expected and code != "no error object":
        return f"refused: {code}"
    return f"unexpected: status {response.status_code} {code}"
