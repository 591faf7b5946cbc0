"""Our own client against the real server process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from reft_client import AsyncReftClient, NotFoundError, ReftClient, UnprocessableEntityError
from tests.e2e.conftest import MakeFile, Server

PROMPT = "The capital of France is"


def test_client_walks_through_the_life_of_an_intervention(server: Server, make_file: MakeFile, tmp_path: Path) -> None:
    path = tmp_path / "walk.safetensors"
    path.write_bytes(make_file(51))
    with ReftClient(server.url) as client:
        assert client.ready().status == "ready"
        base = client.complete(PROMPT, max_tokens=8, temperature=0)
        assert base.intervention is None
        uploaded = client.interventions.upload(path, "walk")
        assert uploaded.self_test is not None
        assert all(site.delta_norm > 0 for site in uploaded.self_test.sites)
        answer = client.complete(PROMPT, max_tokens=8, temperature=0, intervention="walk@1")
        assert answer.choices[0].text != base.choices[0].text
        assert answer.intervention is not None
        assert answer.intervention[0].content_hash == uploaded.content_hash
        assert client.interventions.get("walk").state == "loaded"
        assert "walk" in [item.name for item in client.interventions.list().data]
        assert "walk" in [card.id for card in client.models().data]
        client.interventions.download("walk", tmp_path / "back.safetensors")
        assert (tmp_path / "back.safetensors").read_bytes() == path.read_bytes()
        client.interventions.delete("walk")
        with pytest.raises(NotFoundError):
            client.complete(PROMPT, intervention="walk")
        path.write_bytes(b"no intervention")
        with pytest.raises(UnprocessableEntityError):
            client.interventions.upload(path, "walk")


def test_client_streams_the_same_answer(server: Server) -> None:
    with ReftClient(server.url) as client:
        whole = client.chat("What is the capital of France?", max_tokens=16, temperature=0)
        with client.chat("What is the capital of France?", max_tokens=16, temperature=0, stream=True) as stream:
            text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    assert text == whole.choices[0].message.content


def test_client_async_answers_equal_the_sync_ones(server: Server) -> None:
    prompts = [PROMPT, "Once upon a time", "Water boils at"]

    async def ask() -> list[str]:
        async with AsyncReftClient(server.url) as client:
            answers = await asyncio.gather(*(client.complete(p, max_tokens=8, temperature=0) for p in prompts))
        return [answer.choices[0].text for answer in answers]

    with ReftClient(server.url) as client:
        alone = [client.complete(prompt, max_tokens=8, temperature=0).choices[0].text for prompt in prompts]
    assert asyncio.run(ask()) == alone
