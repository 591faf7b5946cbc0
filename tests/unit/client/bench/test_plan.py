"""What a run sends: the same for the same seed, and each choice on its own stream."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from reft_client import InvalidArgumentError
from reft_client.bench.bodies import request_body
from reft_client.bench.distributions import Distribution
from reft_client.bench.options import BenchOptions
from reft_client.bench.plan import Plan, Session, Turn
from reft_client.bench.rows import Row, RowMessage
from reft_client.bench.vocabulary import Vocabulary

EXACT = Vocabulary(num_extra_tokens=1, is_exact=True)


def options(**fields: Any) -> BenchOptions:
    return BenchOptions.model_validate({"url": "http://x", "concurrency": 1, "num_requests": 10, **fields})


def sessions(count: int = 10, rows: tuple[Row, ...] = (), **fields: Any) -> list[Session]:
    plan = Plan(options(**fields), EXACT, rows)
    return [plan.session(index) for index in range(count)]


def test_plan_is_repeatable_and_depends_on_the_seed() -> None:
    fields = {"interventions": ("a", "b"), "mix": "uniform", "tenants": 3}
    assert sessions(**fields) == sessions(**fields)
    assert sessions(**fields) != sessions(**fields, seed=1)


def test_plan_sends_the_same_prompts_for_every_mix() -> None:
    plain = sessions()
    mixed = sessions(interventions=("a", "b"), mix="uniform", tenants=2)
    assert [item.turns for item in plain] == [item.turns for item in mixed]
    assert {item.intervention for item in mixed} == {"a", "b"}


def test_plan_prompts_have_their_lengths() -> None:
    lengths = {
        len(str(item.turns[0].prompt).split()) + 1
        for item in sessions(200, prompt_tokens=Distribution.parse("uniform:5:9"))
    }
    assert lengths == {5, 6, 7, 8, 9}
    ids = sessions(token_ids=(10, 20), prompt_tokens=Distribution.parse("7"))
    assert all(len(item.turns[0].prompt) == 7 for item in ids)
    assert all(10 <= token < 20 for item in ids for token in item.turns[0].prompt)  # type: ignore[operator]


def test_plan_shares_prefixes_between_groups() -> None:
    prompts = [
        str(item.turns[0].prompt).split()
        for item in sessions(60, shared_prefix=(50, 3), prompt_tokens=Distribution.parse("20"))
    ]
    assert {len(words) + 1 for words in prompts} == {70}
    assert len({tuple(words[:49]) for words in prompts}) == 3
    assert len({tuple(words) for words in prompts}) == 60


def test_plan_prefix_shorter_than_the_template_keeps_the_length() -> None:
    lengths = options(shared_prefix=(8, 1), prompt_tokens=Distribution.parse("40"))
    prompt = str(Plan(lengths, Vocabulary(num_extra_tokens=30, is_exact=True)).session(0).turns[0].prompt)
    assert len(prompt.split()) + 30 == 48


def test_plan_draws_from_a_pool() -> None:
    assert len({item.turns for item in sessions(200, distinct_prompts=7)}) == 7


def test_plan_rows_say_what_they_want() -> None:
    rows = (
        Row(prompt="one", max_tokens=3, intervention="x", user="me"),
        Row(turns=("two", "three"), intervention=""),
        Row(prompt_tokens=9),
    )
    first, second, third, again = sessions(4, rows, interventions=("a",), mix="identical")
    assert first == Session(0, (Turn("one", 3),), "x", "me")
    assert (second.turns, second.intervention) == ((Turn("two", 64), Turn("three", 64)), None)
    assert (len(str(third.turns[0].prompt).split()) + 1, third.intervention) == (9, "a")
    assert again.turns == first.turns


def test_plan_trace_plays_at_its_speed() -> None:
    rows = tuple(Row(prompt="x", at_s=at_s) for at_s in (10, 11, 14))
    plan = Plan(options(concurrency=None, trace=Path("t"), trace_speed=2, num_requests=None), EXACT, rows)
    assert (list(plan.due_times()), plan.num_sessions) == ([0, 0.5, 2], 3)


def test_plan_ramp_goes_over_the_duration() -> None:
    plan = Plan(options(concurrency=None, rate=(0, 10), duration_s=10, arrivals="constant"), EXACT)
    assert sum(due_s < 10 for due_s in itertools.islice(plan.due_times(), 100)) == 50


def test_plan_conversations_need_the_chat_endpoint() -> None:
    row = Row(messages=(RowMessage(role="user", content="hi"),))
    with pytest.raises(InvalidArgumentError, match="--endpoint chat"):
        sessions(rows=(row,))
    assert sessions(rows=(row,), endpoint="chat")[0].turns[0].prompt == row.messages


def test_body_names_what_the_session_wants() -> None:
    session = Session(0, (Turn("Hi", 5),), "haiku", "tenant-1")
    body = request_body(options(model="m", ignore_eos=True, extra_body={"top_k": 3}), session, session.turns[0], [])
    assert body == {
        "prompt": "Hi",
        "model": "m",
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_timing": True,
        "ignore_eos": True,
        "intervention": "haiku",
        "user": "tenant-1",
        "top_k": 3,
    }
    assert request_body(options(via="model", model="m"), session, session.turns[0], [])["model"] == "haiku"


def test_body_holds_the_turns_before() -> None:
    turn = Turn("And then?", 5)
    session = Session(0, (Turn("Hi", 5), turn), None, None)
    history = [("Hi", " you")]
    assert request_body(options(), session, turn, history)["prompt"] == "Hi you\nAnd then?"
    assert request_body(options(endpoint="chat"), session, turn, history)["messages"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " you"},
        {"role": "user", "content": "And then?"},
    ]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"concurrency": None}, "one of"),
        ({"rate": (1, 1)}, "one of"),
        ({"num_requests": None}, "how much"),
        ({"concurrency": None, "rate": (1, 2)}, "ramp"),
        ({"verify": True, "temperature": 1.0}, "verify"),
        ({"verify": True, "num_requests": None, "duration_s": 1}, "verify"),
        ({"token_ids": (5, 5)}, "token-ids"),
        ({"token_ids": (5, 9), "endpoint": "chat"}, "token-ids"),
        ({"processes": 2}, "processes"),
        ({"concurrency": 0}, "concurrency"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(**fields)
