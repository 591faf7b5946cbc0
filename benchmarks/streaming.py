"""Streamed completions over HTTP, with the moments that the benchmarks time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import torch


@dataclass(frozen=True)
class Answer:
    """When one request was answered, in seconds after it was sent."""

    first_token_s: float
    total_s: float


def random_prompts(
    seed: int, num_prompts: int, num_tokens: int, token_ids: range = range(100, 49_000)
) -> list[list[int]]:
    """Prompts of random token ids (the default model's); another seed, another prefix cache miss."""
    generator = torch.Generator().manual_seed(seed)
    prompts: list[list[int]] = torch.randint(
        token_ids.start, token_ids.stop, (num_prompts, num_tokens), generator=generator
    ).tolist()
    return prompts


def completion_body(prompt: list[int], num_new_tokens: int, **fields: Any) -> dict[str, Any]:
    """A greedy streamed request for exactly `num_new_tokens` tokens, as every OpenAI-compatible server takes it."""
    return {
        "prompt": prompt,
        "max_tokens": num_new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
        **fields,
    }


async def stream_completion(client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
    """Send one request and read its stream to the end.

    The stream is read raw and only its end is parsed: the client shares the cores with the server.

    Raises:
        RuntimeError: the answer has another number of tokens than `max_tokens`.
    """
    started = time.perf_counter()
    first_token_s, received = 0.0, bytearray()
    async with client.stream("POST", "/v1/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:500]!r}")
        async for chunk in response.aiter_raw():
            if not received:
                first_token_s = time.perf_counter() - started
            received += chunk
    total_s = time.perf_counter() - started
    num_tokens = _num_completion_tokens(received)
    if num_tokens != body["max_tokens"]:
        raise RuntimeError(f"the answer has {num_tokens} tokens, not {body['max_tokens']}: {bytes(received[-500:])!r}")
    return Answer(first_token_s, total_s)


async def stream_all(url: str, bodies: Sequence[dict[str, Any]]) -> tuple[float, list[Answer]]:
    """Send all requests at once; seconds until the last has every token, and the answers in order."""
    limits = httpx.Limits(max_connections=len(bodies))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        started = time.perf_counter()
        answers = await asyncio.gather(*(stream_completion(client, body) for body in bodies))
        return time.perf_counter() - started, answers


def _num_completion_tokens(received: bytearray) -> int | None:
    """The usage of the stream's last event before `[DONE]`."""
    events = [line[6:] for line in received.splitlines() if line.startswith(b"data: {")]
    usage = json.loads(events[-1]).get("usage") if events else None
    return int(usage["completion_tokens"]) if usage else None
