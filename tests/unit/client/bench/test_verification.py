"""Every answer under load against the same request alone."""

from __future__ import annotations

import asyncio
import itertools
from io import StringIO
from typing import Any

import pytest

from benchmarks.stream_server import StreamServer, words_of
from reft_client.bench.live import LiveView
from reft_client.bench.measurement import measure
from reft_client.bench.options import BenchOptions
from reft_client.bench.verification import VerificationError
from reft_client.bench.vocabulary import Vocabulary
from reft_client.bench.worker import Job, plan_of


async def verify(server: StreamServer, **fields: Any) -> dict[str, Any]:
    async with server:
        options = BenchOptions.model_validate(
            {
                "url": server.url,
                "concurrency": 8,
                "prompt_tokens": {"kind": "fixed", "parameters": (4,)},
                "max_tokens": {"kind": "fixed", "parameters": (2,)},
                "distinct_prompts": 3,
                "interventions": ("a", "b"),
                "mix": "uniform",
                "verify": True,
                **fields,
            }
        )
        job = Job(options=options, vocabulary=Vocabulary())
        plan = plan_of(job)
        document = await measure(job, plan, LiveView(StringIO(), is_quiet=True))
        return dict(document["verification"])


def test_server_that_answers_alike_has_no_mismatch() -> None:
    server = StreamServer()
    result = asyncio.run(verify(server, num_requests=60))
    assert (result["num_references"], result["num_compared"], result["num_mismatches"]) == (6, 60, 0)
    assert len(server.bodies) == 66


def test_two_interventions_swapped_once_in_a_thousand_are_caught() -> None:
    """The bug that the check is for: one request of a thousand is answered with another's intervention."""
    numbers = itertools.count()
    other = {"a": "b", "b": "a"}

    def answer(body: dict[str, Any]) -> list[str]:
        if next(numbers) % 1000 == 700:
            return words_of({**body, "intervention": other[body["intervention"]]})
        return words_of(body)

    server = StreamServer(answer=answer)
    result = asyncio.run(verify(server, num_requests=1000))
    assert (result["num_compared"], result["num_mismatches"]) == (1000, 1)
    mismatch = result["mismatches"][0]
    wrong = server.bodies[700]
    assert mismatch["intervention"] == wrong["intervention"]
    assert mismatch["expected"] == "".join(words_of(wrong))
    assert mismatch["actual"] == "".join(words_of({**wrong, "intervention": other[wrong["intervention"]]}))


def test_whole_sessions_are_compared_turn_by_turn() -> None:
    turns = {"kind": "fixed", "parameters": (2,)}
    result = asyncio.run(verify(StreamServer(), num_requests=10, turns=turns, endpoint="chat"))
    assert (result["num_compared"], result["num_mismatches"]) == (20, 0)


def test_reference_that_fails_ends_the_run() -> None:
    server = StreamServer(
        refuse=lambda _: (404, {"error": {"message": "no such set", "code": "intervention_not_found"}})
    )
    with pytest.raises(VerificationError, match="no such set"):
        asyncio.run(verify(server, num_requests=5))
