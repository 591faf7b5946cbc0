"""Interventions as a resource on the real server: trained sets are promoted, rolled back, compared and restored."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from reft_client import ConflictError, NotFoundError, PreconditionFailedError, ReftClient
from reft_client.cli import main
from reft_client.types import CompletionResponse
from tests.e2e.conftest import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
SHOUT, WORDS = EXAMPLES / "shout/shout.safetensors", EXAMPLES / "word-category/word-category.safetensors"
QUESTION = "What is the capital of France?"


@pytest.fixture
def name() -> str:
    """Of a new set: the numbers of a deleted one are never used again."""
    return f"resource-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def client(server: Server, name: str) -> Iterator[ReftClient]:
    """Version 1 of the set answers in capital letters, version 2 names kinds of things."""
    with ReftClient(server.url) as client:
        client.interventions.upload(SHOUT, name, must_be_new=True, provenance={"recipe": "examples/shout"})
        client.interventions.upload(WORDS, name)
        yield client
        client.interventions.delete(name, purge=True)


def ask(sdk: openai.OpenAI, model: str) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    answer = sdk.chat.completions.create(model=model, messages=messages, max_tokens=24, temperature=0)  # type: ignore[call-overload]
    return str(answer.choices[0].message.content)


def test_alias_decides_what_the_sdk_gets_and_a_rollback_takes_it_back(
    client: ReftClient, name: str, sdk: openai.OpenAI
) -> None:
    sets = client.interventions
    sets.promote(name, "prod", 1)
    shouted = ask(sdk, f"{name}@prod")
    assert shouted == shouted.upper() != shouted.lower(), "the trained set answers in capital letters"
    assert sets.promote(name, "prod", 2).previous == 1
    other = ask(sdk, f"{name}@prod")
    assert other != shouted
    assert other == ask(sdk, f"{name}@2")
    assert (back := sets.rollback(name, "prod")).version == 1
    assert back.previous == 2
    assert ask(sdk, f"{name}@prod") == shouted
    with pytest.raises(ConflictError, match="prod"):
        sets.delete(name, 1)


def test_request_in_flight_keeps_its_version_while_the_alias_moves(client: ReftClient, name: str) -> None:
    client.interventions.promote(name, "prod", 1)
    alone = client.chat(QUESTION, intervention=f"{name}@1", max_tokens=48, temperature=0)
    stop = threading.Event()

    def move() -> None:
        with ReftClient(client.base_url) as mover:
            while not stop.is_set():
                mover.interventions.promote(name, "prod", 2)
                mover.interventions.rollback(name, "prod")

    thread = threading.Thread(target=move)
    thread.start()
    try:
        for _ in range(4):
            answer = client.chat(QUESTION, intervention=f"{name}@prod", max_tokens=48, temperature=0)
            assert answer.intervention is not None
            if answer.intervention[0].version == 1:
                assert answer.choices[0].message.content == alone.choices[0].message.content
            else:
                assert answer.choices[0].message.content != alone.choices[0].message.content
    finally:
        stop.set()
        thread.join()
    assert client.interventions.alias(name, "prod").version == 1


def test_comparison_shows_what_each_route_answers_alone(client: ReftClient, name: str) -> None:
    compared = client.interventions.compare(name, messages=QUESTION, version=1, max_tokens=24, temperature=0)
    base = client.chat(QUESTION, max_tokens=24, temperature=0, seed=0).choices[0].message.content
    edited = client.chat(QUESTION, intervention=f"{name}@1", max_tokens=24, temperature=0).choices[0].message.content
    assert not isinstance(compared.base, CompletionResponse)
    assert not isinstance(compared.edited, CompletionResponse)
    assert compared.base.choices[0].message.content == base
    assert compared.edited.choices[0].message.content == edited
    assert not compared.is_same
    same = client.interventions.compare(name, "The sea", version=1, against=f"{name}@1", max_tokens=8)
    assert same.is_same, "one seed, one set: the same answer on both sides, sampled or not"


def test_stored_set_passes_its_test_again_and_the_base_is_untouched(client: ReftClient, name: str) -> None:
    before = client.complete("The sea", max_tokens=8, temperature=0).choices[0].text
    report = client.interventions.test(name, 1)
    assert len(report.self_test.sites) == len({site.layer for site in report.self_test.sites}) > 1
    assert all(site.delta_norm > 0 for site in report.self_test.sites)
    assert client.complete("The sea", max_tokens=8, temperature=0).choices[0].text == before


def test_deleted_set_comes_back_with_the_same_answers(client: ReftClient, name: str, tmp_path: Path) -> None:
    sets = client.interventions
    before = client.chat(QUESTION, intervention=f"{name}@1", max_tokens=8, temperature=0).choices[0].message.content
    sets.promote(name, "prod", 1)
    sets.delete(name)
    with pytest.raises(NotFoundError):
        client.chat(QUESTION, intervention=f"{name}@prod", max_tokens=8)
    assert [info.version for info in sets.versions(name, deleted=True).data] == [1, 2]
    assert [info.version for info in sets.restore(name).data] == [1, 2]
    answer = client.chat(QUESTION, intervention=f"{name}@prod", max_tokens=8, temperature=0)
    assert answer.choices[0].message.content == before
    assert sets.download(name, tmp_path / "back", 1).read_bytes() == SHOUT.read_bytes()


def test_of_two_people_who_start_from_one_version_the_second_is_told(client: ReftClient, name: str) -> None:
    sets = client.interventions
    seen = sets.get(name).content_hash
    key = uuid.uuid4().hex
    first = sets.upload(SHOUT, name, if_match=seen, idempotency_key=key)
    assert first.version == 3
    with pytest.raises(PreconditionFailedError, match="now 3"):
        sets.upload(WORDS, name, if_match=seen)
    assert sets.upload(SHOUT, name, if_match=seen, idempotency_key=key) == first, "the same request: done once"
    assert sets.get(name, 1).provenance is not None


def test_command_promotes_describes_and_finds(
    client: ReftClient, name: str, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    def reft(*arguments: str) -> str:
        assert main(["interventions", *arguments, "--url", server.url]) == 0
        return capsys.readouterr().out

    assert reft("promote", f"{name}@1", "stable") == f"{name}@stable is version 1\n"
    reft("describe", name, "--description", "Two in one", "--label", "task=both")
    assert f"{name}\t2\t" in reft("list", "--label", "task=both")
    assert "Two in one" in reft("card", name)
    assert "passed" in reft("test", f"{name}@stable")
    assert "base model\t" in reft("compare", f"{name}@stable", QUESTION, "--chat", "--max-tokens", "4")
    assert name in [info.name for info in client.interventions.list(label="task=both").data]
