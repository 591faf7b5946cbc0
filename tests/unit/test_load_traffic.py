"""The load test's own eyes: an answer of the wrong tenant, a broken stream or a 5xx is a fault, and busy is none."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import httpx
import pytest

from benchmarks.load_tenants import HOUSE, Tenant, World
from benchmarks.load_traffic import Traffic

MINE, SWAPS, THEIRS = "sha256:mine", ("sha256:swap-1", "sha256:swap-2"), "sha256:theirs"
HASHES = {"style": frozenset({MINE}), "swap": frozenset(SWAPS), HOUSE: frozenset({"sha256:house"})}
EVERY_HASH = ["", MINE, *SWAPS, "sha256:house"]


def outcomes(answer: Any) -> set[str]:
    """What the traffic says of forty answers; `answer(body)` gives status, headers and text."""
    tenant = Tenant("acme", "key", [b"", b"", b""], HASHES)
    world = World([tenant], {(content_hash, "ask"): f"known {content_hash}" for content_hash in EVERY_HASH})

    def serve(request: httpx.Request) -> httpx.Response:
        status, headers, text = answer(json.loads(request.content))
        return httpx.Response(status, headers=headers, text=text)

    async def run() -> set[str]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve), base_url="http://test") as client:
            traffic, rng = Traffic(client, world), random.Random(0)
            for _ in range(40):
                await traffic._count(traffic._answer, tenant, rng)
            return set(traffic.outcomes)

    return asyncio.run(run())


def right_hash(body: dict[str, Any]) -> str:
    if "task" in body:
        return MINE
    name = str(body.get("intervention", body.get("model", "")))
    return {"": "", "style": MINE, HOUSE: "sha256:house"}.get(name, SWAPS[1])


def stream(content_hash: str, text: str, *, in_header: str | None = None, end: str = "[DONE]") -> tuple[int, Any, str]:
    applied = [{"content_hash": content_hash}] if content_hash else None
    chunk = json.dumps({"intervention": applied, "choices": [{"text": text}]})
    header = content_hash if in_header is None else in_header
    return 200, {"x-reft-content-hash": header} if header else {}, f"data: {chunk}\n\ndata: {end}\n\n"


def error(status: int, code: str) -> tuple[int, Any, str]:
    return status, {}, json.dumps({"error": {"code": code}})


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.load_traffic.BUSY_PAUSE_S", 0)


def test_right_answers_are_no_fault() -> None:
    found = outcomes(lambda body: stream(right_hash(body), f"known {right_hash(body)}"))
    assert found == {"answered", "answered, text as known"}


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda _: stream(THEIRS, "known"), "unexpected: WRONG CONTENT"),
        (lambda body: stream(right_hash(body), "x", in_header=THEIRS), "unexpected: WRONG CONTENT"),
        (lambda body: stream("" if right_hash(body) else MINE, "x"), "unexpected: WRONG CONTENT"),
        (lambda body: stream(right_hash(body), f"known {THEIRS}"), "unexpected: ANOTHER TEXT"),
        (lambda body: stream(right_hash(body), "known", end="{}"), "unexpected: the stream ended"),
        (lambda _: error(500, "internal_error"), "unexpected: 500"),
        (lambda _: error(503, "engine_unavailable"), "unexpected: 503"),
        (lambda _: error(404, "intervention_not_found"), "unexpected: 404"),
        (lambda _: error(429, "something_else"), "unexpected: 429"),
    ],
)
def test_fault_is_seen(answer: Any, fault: str) -> None:
    assert any(outcome.startswith(fault) for outcome in outcomes(answer))


def test_being_busy_is_no_fault() -> None:
    assert outcomes(lambda _: error(429, "engine_overloaded")) == {"busy: engine_overloaded"}
