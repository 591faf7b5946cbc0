"""Several sets in one request: order, scales, rank dimensions and source prompts, against the slow reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from reft_interventions import InterventionSet
from reft_interventions.components import COMPONENTS
from reft_interventions.training import Dataset, TokenizedExample, TrainingOptions, train
from tests.fakes.tokenizers import byte_level_tokenizer
from tests.parity.harness import Case, Comparison, Use, reference, run_together
from tests.parity.test_engine_matches_reference import PATHS, prompt

SPECS: dict[str, list[dict[str, Any]]] = {
    "prefix": [{"positions": "f3"}, {"positions": "f3", "layer": 3}],
    "ends": [{"positions": "f2+l4", "low_rank_dimension": 5}],
    "everywhere": [{"positions": "all", "act": "gelu"}],
    "subtracts nothing": [{"positions": "l6", "formula": "nodireft", "act": "relu"}],
    "shift": [{"positions": "prompt", "formula": "scale_shift"}],
    "stored": [{"positions": "all", "formula": "dii", "layer": 2}],
    "asks": [{"positions": "f2+l2", "formula": "dii"}],
    "asks twice": [{"positions": "l3", "formula": "dii", "layer": layer} for layer in (0, 2)],
}


@pytest.fixture(scope="module")
def sets(tiny_model: Any, make_set: Any) -> dict[str, InterventionSet]:
    model = tiny_model("llama")
    return {
        name: make_set(model, *specs, seed=seed, stores_source=not name.startswith("asks"))
        for seed, (name, specs) in enumerate(SPECS.items())
    }


def compare(model: Any, engine: Any, cases: list[Case]) -> None:
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_batched_tokens", [5, 256])
def test_engine_matches_reference_for_ordered_lists(
    path: str, num_batched_tokens: int, tiny_model: Any, start_engine: Any, sets: dict[str, InterventionSet]
) -> None:
    """Overlapping sets at one site in both orders, each with its own scale and rank dimensions, in one batch."""
    choices = [
        Use(sets["prefix"], 0.5, (0, 3)),
        Use(sets["ends"], -1.0, (2,)),
        Use(sets["everywhere"], 0.7, (1, 2)),
        Use(sets["subtracts nothing"], 2.0, (0, 1, 3)),
        Use(sets["shift"], 0.0),
        Use(sets["shift"], -0.5),
        Use(sets["stored"], 1.0, (1,)),
    ]
    lists = [*((one,) for one in choices), *itertools.permutations(choices[:3]), tuple(choices), tuple(choices[::-1])]
    cases = [Case(prompt(7 + index % 9, index), chosen) for index, chosen in enumerate(lists)]
    engine = start_engine(
        tiny_model("llama"), model_path=path, max_num_batched_tokens=num_batched_tokens, max_num_seqs=8
    )
    compare(tiny_model("llama"), engine, cases)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_batched_tokens", [1, 7, 256])
def test_engine_matches_reference_for_sources(
    path: str, num_batched_tokens: int, tiny_model: Any, start_engine: Any, sets: dict[str, InterventionSet]
) -> None:
    """Two runs with plain hooks are the reference; sources run in chunks, beside each other and decoding rows."""
    cases = []
    for index, (num_prompt, num_source) in enumerate([(4, 4), (11, 11), (23, 9), (9, 30), (40, 33)]):
        asks = Use(sets["asks"], source=prompt(num_source, 300 + index))
        twice = Use(sets["asks twice"], 0.5, (1, 3), source=prompt(num_source, 400 + index))
        own = prompt(num_prompt, 200 + index)
        cases += [Case(own, (asks,)), Case(own, (twice,)), Case(own), Case(own, (asks, Use(sets["ends"]), twice))]
    engine = start_engine(
        tiny_model("llama"), model_path=path, max_num_batched_tokens=num_batched_tokens, max_num_seqs=6
    )
    compare(tiny_model("llama"), engine, cases)


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_source_gives_rows_of_any_component(
    component: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    model = tiny_model("llama")
    spec: dict[str, Any] = {"component": component, "formula": "dii", "positions": "l2"}
    one = make_set(model, spec, stores_source=False, seed=4)
    cases = [Case(prompt(12, seed), (Use(one, source=prompt(9, 50 + seed)),)) for seed in range(4)]
    compare(model, start_engine(model, max_num_batched_tokens=8), cases)


@pytest.mark.parametrize("path", PATHS)
def test_sources_survive_preemption(
    path: str, tiny_model: Any, start_engine: Any, sets: dict[str, InterventionSet]
) -> None:
    """Long answers crowd out the sources' prefills, which start again and note their rows again."""
    cases = [Case(prompt(20, 500 + index), (), max_tokens=150) for index in range(4)]
    for index in range(6):
        use = Use(sets["asks"], source=prompt(90, 600 + index))
        cases.append(Case(prompt(30, 700 + index), (use,), max_tokens=60))
    engine = start_engine(
        tiny_model("llama"), model_path=path, max_num_batched_tokens=16, max_num_seqs=6, kv_cache_bytes=256 * 512
    )
    compare(tiny_model("llama"), engine, cases)
    assert engine.stats().num_preemptions > 0


ANSWERS = {"formal": 7, "brief": 9}


@pytest.fixture(scope="module")
def two_tasks(tiny_model: Any) -> InterventionSet:
    """One LoReFT that learned, with rank dimensions of their own, to answer 7 in one task and 9 in the other."""
    options = TrainingOptions(
        layers="1;2;3", positions="l2", low_rank_dimension=6, subspaces="formal=0,1,5;brief=2,3,4",
        epochs=16, lr=3e-2, batch_size=16, prefix_cache_mb=0,
    )  # fmt: skip
    rows = tuple(
        TokenizedExample(prompt(8, 800 + index), (token,), index, subspace=name)
        for index in range(40)
        for name, token in ANSWERS.items()
    )
    return train(tiny_model("llama"), byte_level_tokenizer(), options, Dataset(rows, 0, "")).intervention_set


@pytest.mark.parametrize("path", PATHS)
def test_two_tasks_trained_in_one_set_are_served_apart_and_together(
    path: str, tiny_model: Any, start_engine: Any, two_tasks: InterventionSet
) -> None:
    """Prompts that training has not seen, in one batch: each task's dimensions write its own answer."""
    model, subspaces = tiny_model("llama"), two_tasks.manifest.subspaces
    cases = {
        (name, index): Case(prompt(8, 900 + index), (Use(two_tasks, 1.0, subspaces.get(name)),), max_tokens=4)
        for name in (*ANSWERS, "both")
        for index in range(8)
    }
    written = run_together(start_engine(model, model_path=path, max_num_seqs=24), list(cases.values()))
    comparison = Comparison()
    for case, got in zip(cases.values(), written, strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()
    num_own = sum(tokens[0] == ANSWERS.get(name) for (name, _), tokens in zip(cases, written, strict=True))
    assert num_own >= 12, written
