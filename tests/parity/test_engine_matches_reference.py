"""Every formula, position spec and batch mix, on both model paths, with prompts prefilled in chunks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reft_interventions import FORMULAS
from tests.parity.harness import Case, Comparison, reference, run_together

PATHS = ("native", "packed", "generic")
LENGTHS = (1, 2, 3, 11, 23)
POSITIONS: dict[str, list[dict[str, Any]]] = {
    "f3": [{"positions": "f3"}],
    "l5": [{"positions": "l5"}],
    "f3+l5": [{"positions": "f3+l5"}],
    "f7+l7 floor": [{"positions": "f7+l7", "short_prompt": "floor"}],
    "untied": [{"positions": "f2+l4", "part": "prefix"}, {"positions": "f2+l4", "part": "suffix"}],
    "offset": [{"positions": "f1+l3", "suffix_offset": 2}],
    "prompt": [{"positions": "prompt"}],
    "all": [{"positions": "all"}],
    "generated": [{"positions": "generated"}],
    "indices": [{"positions": (0, 4, -1, -2, 200)}],
}


def prompt(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 128, (length,), generator=generator).tolist())


@pytest.fixture(scope="module")
def base_cases(tiny_model: Any) -> list[tuple[Case, Any]]:
    cases = [Case(prompt(length, 1000 + length)) for length in (2, 9, 30)]
    return [(case, reference(tiny_model("llama"), case)) for case in cases]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("formula", FORMULAS)
def test_engine_matches_reference_for_every_formula_and_position(
    formula: str, positions: str, tiny_model: Any, make_set: Any, start_engine: Any, base_cases: list[tuple[Case, Any]]
) -> None:
    """The set under test, two others and base rows share every batch; chunks of at most 7 tokens."""
    model = tiny_model("llama")
    specs = [{"formula": formula, "layer": layer, **spec} for layer in (0, 3) for spec in POSITIONS[positions]]
    tested = make_set(model, *specs, seed=1)
    other = make_set(model, {"positions": "f2+l2", "low_rank_dimension": 2}, seed=2)
    strong = make_set(model, {"formula": "scale_shift", "positions": "all", "layer": 2}, seed=3)
    cases = [Case(prompt(length, length), ((tested, 1.0),)) for length in LENGTHS]
    cases += [Case(prompt(11, 50), ((tested, -0.5), (other, 2.0))), Case(prompt(6, 51), ((strong, 1.0),))]
    expected = [reference(model, case) for case in cases]
    comparison = Comparison()
    for path in PATHS:
        engine = start_engine(model, model_path=path, max_num_batched_tokens=7, max_num_seqs=6)
        outputs = run_together(engine, [*cases, *(case for case, _ in base_cases)])
        for case, got, want in zip(cases, outputs, expected, strict=False):
            comparison.check(case, got, want)
        for (case, want), got in zip(base_cases, outputs[len(cases) :], strict=True):
            comparison.check(case, got, want)
    comparison.verdict()


@pytest.mark.parametrize(
    "component", ["block_input", "block_output", "mlp_input", "mlp_output", "attention_input", "attention_output"]
)
def test_engine_matches_reference_for_every_component(
    component: str, architecture: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    model = tiny_model(architecture)
    tested = make_set(
        model,
        {"component": component, "positions": "f2+l3"},
        {"component": component, "positions": "all", "layer": 2},
        seed=4,
    )
    cases = [Case(prompt(length, length), ((tested, 1.0),)) for length in (1, 4, 19)]
    cases += [Case(prompt(length, 70 + length)) for length in (3, 13)]
    engine = start_engine(model, max_num_batched_tokens=8)
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()


@pytest.mark.parametrize("mix", ["none", "identical", "distinct", "skewed"])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("num_batched_tokens", [5, 64])
def test_engine_matches_reference_for_every_mix(
    mix: str, path: str, num_batched_tokens: int, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    model = tiny_model("llama")
    sets = [
        make_set(model, {"positions": "f2+l2", "low_rank_dimension": 1 + seed, "layer": seed % 4}, seed=seed)
        for seed in range(8)
    ]
    chosen = {"none": [], "identical": [0], "distinct": list(range(8)), "skewed": [0, 0, 0, 0, 0, 1, 2, 0]}[mix]
    cases = [
        Case(prompt(5 + 3 * i, 90 + i), ((sets[chosen[i % len(chosen)]], 1.0),) if chosen else ()) for i in range(8)
    ]
    engine = start_engine(model, model_path=path, max_num_batched_tokens=num_batched_tokens)
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()


@pytest.mark.parametrize("path", PATHS)
def test_engine_applies_sets_in_each_request_own_order(
    path: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    """Two sets at one site, in opposite orders in one batch: a request's order must not leak into its neighbour's."""
    model = tiny_model("llama")
    first = make_set(model, {"positions": "all"}, seed=11)
    second = make_set(model, {"positions": "all", "formula": "scale_shift"}, seed=12)
    orders = [(first, second), (second, first), (first,), (second, second)]
    cases = [Case(prompt(9, 33), tuple((one, 1.0) for one in order)) for order in orders]
    engine = start_engine(model, model_path=path)
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()
