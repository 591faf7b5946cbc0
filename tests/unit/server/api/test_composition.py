"""Rank dimensions by choice and source prompts, over HTTP around the fake engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from reft_interventions import dumps
from reft_interventions.folded import FoldedSet
from reft_server.errors import EngineOverloadedError
from tests.fakes.engine import FakeEngine
from tests.intervention_sets import make_set

PROMPT = [5, 6, 7, 8, 9]
SOURCE = [11, 12, 13, 14, 15]
TASKS = make_set(low_rank_dimension=4, subspaces={"add": (0, 2), "subtract": (1, 3), "first": (0,)})
SETS = {
    "tasks": TASKS,
    "shift": make_set(formula="addition", low_rank_dimension=0),
    "das": make_set(formula="dii", positions="l2"),
    "das-all": make_set(formula="dii", positions="prompt"),
}


@pytest.fixture
def uploaded(client: TestClient) -> TestClient:
    for name, one in SETS.items():
        response = client.post("/v1/interventions", params={"name": name}, content=dumps(one))
        assert response.status_code == 201, response.text
    return client


def post(client: TestClient, intervention: object, status: int = 200, **body: Any) -> Any:
    fields = {"prompt": PROMPT, "max_tokens": 2, "intervention": intervention, **body}
    response = client.post("/v1/completions", json=fields)
    assert response.status_code == status, response.text
    return response.json()


def das(source: object = SOURCE, **fields: object) -> dict[str, object]:
    return {"name": "das", "source": source, **fields}


def ran(engine: FakeEngine) -> list[tuple[int, ...]]:
    """The source prompts that reached the engine."""
    return [one.prompt_token_ids for one in engine.submitted if one.captures]


@pytest.mark.parametrize(
    ("chosen", "dimensions"),
    [([1], (1,)), ([3, 0], (0, 3)), (["add"], (0, 2)), (["subtract", 0], (0, 1, 3)), ([0, 1, 2, 3], (0, 1, 2, 3))],
)
@pytest.mark.parametrize("scale", [1.0, -0.5])
def test_chosen_rank_dimensions_reach_the_engine_and_the_answer(
    uploaded: TestClient, engine: FakeEngine, chosen: list[object], dimensions: tuple[int, ...], scale: float
) -> None:
    answer = post(uploaded, {"name": "tasks", "scale": scale, "subspaces": chosen})
    [folded] = engine.submitted[-1].interventions
    expected = TASKS.fold().restricted(dimensions).scaled(scale)
    assert folded.content_hash == expected.content_hash
    rows = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    assert torch.equal(folded.interventions[0].edit.delta(rows), expected.interventions[0].edit.delta(rows))
    assert answer["intervention"] == [
        {
            "name": "tasks",
            "version": 1,
            "content_hash": TASKS.content_hash,
            "scale": scale,
            "subspaces": list(dimensions),
        }
    ]


@pytest.mark.parametrize(
    ("intervention", "advice"),
    [
        ({"name": "tasks", "subspaces": []}, "leave it out, or set scale to 0"),
        ({"name": "tasks", "subspaces": [4]}, "has 0 to 3"),
        ({"name": "tasks", "subspaces": [-1]}, "has 0 to 3"),
        ({"name": "tasks", "subspaces": [2, 2]}, "dimension 2 twice"),
        ({"name": "tasks", "subspaces": ["add", "first"]}, "dimension 0 twice"),
        ({"name": "tasks", "subspaces": ["multiply"]}, "its names are add, first, subtract"),
        ({"name": "shift", "subspaces": [0]}, "formula 'addition' of this set has no rank dimensions"),
    ],
)
def test_rank_dimensions_that_are_not_there_are_refused_with_advice(
    uploaded: TestClient, engine: FakeEngine, intervention: object, advice: str
) -> None:
    error = post(uploaded, intervention, 400)["error"]
    assert (error["code"], error["param"]) == ("invalid_subspaces", "subspaces")
    assert advice in error["message"]
    assert not engine.submitted


def test_named_groups_are_shown(uploaded: TestClient) -> None:
    info = uploaded.get("/v1/interventions/tasks").json()
    assert info["subspaces"] == {"add": [0, 2], "subtract": [1, 3], "first": [0]}


def test_a_source_runs_first_and_its_rows_reach_the_edit(uploaded: TestClient, engine: FakeEngine) -> None:
    answer = post(uploaded, das(scale=0.5))
    source, request = engine.submitted
    assert (source.prompt_token_ids, source.sampling.max_tokens) == (tuple(SOURCE), 1)
    [folded] = request.interventions
    [one] = folded.interventions
    rotation = SETS["das"].parameters[0]["rotate_layer"]
    hidden = torch.randn(1, 16, generator=torch.Generator().manual_seed(1))
    for index, token in enumerate(SOURCE[-2:]):
        row = torch.full((1, 16), float(token))  # what the fake engine has there
        delta = one.edit.of_tokens(index, index + 1).delta(hidden)
        torch.testing.assert_close(delta, 0.5 * (row - hidden) @ rotation @ rotation.T)
    assert answer["intervention"][0]["source_tokens"] == 5
    assert answer["usage"]["prompt_tokens"] == 5


def test_rows_of_a_source_go_to_the_device_beside_the_event_loop(
    uploaded: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_loop: list[bool] = []
    with_source = FoldedSet.with_source

    def noting(folded: FoldedSet, *arguments: Any) -> FoldedSet:
        has_loop.append(asyncio._get_running_loop() is not None)
        return with_source(folded, *arguments)

    monkeypatch.setattr(FoldedSet, "with_source", noting)
    post(uploaded, das())
    assert has_loop == [False]


def test_sources_run_once_and_no_further_than_needed(uploaded: TestClient, engine: FakeEngine) -> None:
    """Neither scale nor rank dimensions nor the answer's prompt make a difference; another salt does."""
    post(uploaded, das())
    post(uploaded, das(scale=-1, subspaces=[1]), prompt=[PROMPT, [1, 2, 3]], n=2)
    assert ran(engine) == [tuple(SOURCE)]
    assert len({one.interventions[0].content_hash for one in engine.submitted if not one.captures}) == 2
    post(uploaded, das(), cache_salt="mine")
    assert ran(engine) == [tuple(SOURCE)] * 2


def test_a_source_counts_for_its_user(uploaded: TestClient, engine: FakeEngine) -> None:
    post(uploaded, [das(), das([21, 22, 23])], user="ann", priority=-2, cache_salt="s")
    sources = [one for one in engine.submitted if one.captures]
    assert len(sources) == 2
    for one in sources:
        assert (one.tenant, one.priority, one.cache_salt, one.deadline_s) == ("ann", -2, "s", 600.0)


@pytest.mark.parametrize(
    ("intervention", "advice"),
    [
        ("das", '{"name": "das", "source": "..."}'),
        ({"name": "tasks", "source": "x"}, "takes no source"),
        (das(""), "0 tokens: give 1 to 255"),
        (das([3] * 256), "256 tokens: give 1 to 255"),
        ({"name": "das-all", "source": [1, 2, 3]}, "5 tokens of the prompt (5 tokens) and 3 of the source (3 tokens)"),
        (das([{"role": "user", "content": "x"}]), "a text or a list of token ids"),
    ],
)
def test_sources_that_do_not_fit_are_refused_with_advice(
    uploaded: TestClient, engine: FakeEngine, intervention: object, advice: str
) -> None:
    error = post(uploaded, intervention, 400)["error"]
    assert (error["code"], error["param"]) == ("invalid_intervention_source", "source")
    assert advice in error["message"]
    assert not engine.submitted


def test_a_source_must_fit_every_prompt(uploaded: TestClient, engine: FakeEngine) -> None:
    error = post(uploaded, das(), 400, prompt=[PROMPT, [1]])["error"]
    assert error["code"] == "invalid_intervention_source"
    assert "1 tokens of the prompt" in error["message"]
    assert not engine.submitted


def test_a_source_the_engine_refuses_fails_the_request(uploaded: TestClient, engine: FakeEngine) -> None:
    engine.refuse = EngineOverloadedError("full")
    assert post(uploaded, das(), 429)["error"]["code"] == "engine_overloaded"
    engine.refuse = None
    post(uploaded, das())  # the next one tries again
    assert ran(engine) == [tuple(SOURCE)]


@pytest.mark.parametrize(
    ("source", "rendered"),
    [
        ("Hi", "<user>Hi\n<assistant>"),
        (
            [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}],
            "<system>Be kind\n<user>Hi\n<assistant>",
        ),
    ],
)
def test_a_chat_source_goes_through_the_template(
    uploaded: TestClient, engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, source: object, rendered: str
) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    body = {"messages": messages, "max_tokens": 2, "intervention": das(source)}
    response = uploaded.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    assert [tokenizer.decode(list(one)) for one in ran(engine)] == [rendered]


def test_a_chat_source_of_token_ids_is_refused(uploaded: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "intervention": das()}
    response = uploaded.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_intervention_source"
