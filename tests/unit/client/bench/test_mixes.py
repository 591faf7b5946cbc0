"""Mixes of interventions: each kind's odds."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from reft_client import InvalidArgumentError
from reft_client.bench.mixes import Mix, expand_names

NAMES = ("a", "b", "c", "d")
NUM_DRAWS = 20_000


def counts(mix: Mix) -> Counter[str | None]:
    rng = random.Random(1)
    return Counter(mix.choose(index, rng) for index in range(NUM_DRAWS))


@pytest.mark.parametrize(
    ("text", "odds"),
    [
        ("none", {None: 1}),
        ("identical", {"a": 1}),
        ("distinct", {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}),
        ("uniform", {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}),
        ("zipf:1", {"a": 12 / 25, "b": 6 / 25, "c": 4 / 25, "d": 3 / 25}),
        ("zipf:0", {"a": 0.25, "b": 0.25, "c": 0.25, "d": 0.25}),
        ("skewed", {"a": 0.75, None: 0.125, "b": 1 / 24, "c": 1 / 24, "d": 1 / 24}),
    ],
)
def test_mix_has_its_odds(text: str, odds: dict[str | None, float]) -> None:
    counted = counts(Mix.parse(text, NAMES))
    assert set(counted) == set(odds)
    for name, odd in odds.items():
        assert counted[name] / NUM_DRAWS == pytest.approx(odd, abs=5 * (odd * (1 - odd) / NUM_DRAWS) ** 0.5)


def test_distinct_goes_round() -> None:
    mix = Mix.parse("distinct", NAMES)
    assert [mix.choose(index, random.Random(0)) for index in range(6)] == ["a", "b", "c", "d", "a", "b"]


def test_skewed_with_one_name_has_no_others() -> None:
    assert set(counts(Mix.parse("skewed", ("a",)))) == {"a", None}


def test_tenant_and_task_decide() -> None:
    rng = random.Random(0)
    by_tenant = Mix.parse("tenant", NAMES)
    assert [by_tenant.choose(0, rng, tenant=tenant) for tenant in (0, 3, 4)] == ["a", "d", "a"]
    by_task = Mix.parse("task", NAMES, ("code", "poems"))
    assert [by_task.choose(0, rng, task=task) for task in ("poems", "code", None)] == ["b", "a", None]
    assert Mix.parse("task", (), ("code",)).choose(0, rng, task="code") == "code"


@pytest.mark.parametrize(
    ("text", "names"),
    [("zipf", NAMES), ("zipf:x", NAMES), ("zipf:-1", NAMES), ("other", NAMES), ("uniform", ()), ("task", NAMES)],
)
def test_mix_refuses_what_it_is_not(text: str, names: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgumentError):
        Mix.parse(text, names)


def test_names_expand_ranges() -> None:
    assert expand_names("haiku, s-{8..11}x,pirate@2") == ("haiku", "s-8x", "s-9x", "s-10x", "s-11x", "pirate@2")


@pytest.mark.parametrize("text", ["", " ,", "s-{5..4}", "s-{0..9999999}"])
def test_names_refuse_nothing_and_too_much(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        expand_names(text)
