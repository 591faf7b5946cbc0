"""The packed path with Triton's kernels and paged K and V against the slow reference; without a GPU, interpreted.

Few and short cases over two layers, and one engine for each architecture: the interpreter takes about a millisecond for
each program of a kernel.
"""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from reft_server.engine import EngineSettings, LocalEngine, build_engine
from reft_server.engine.cuda import GraphedModel
from reft_server.engine.packed_model import PackedModel
from tests.parity.harness import Case, Comparison, reference, run_together
from tests.parity.test_engine_matches_reference import prompt
from tests.recorded_graphs import RecordedGraphs

SETTINGS: dict[str, Any] = {
    "kernels": "triton",
    "attention": "triton",
    "model_path": "packed",
    "max_num_seqs": 4,
    "max_num_batched_tokens": 8,
}


def check(engine: Any, model: Any, cases: list[Case]) -> None:
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_triton_path_matches_reference(arch: str, tiny_model: Any, make_set: Any, start_engine: Any) -> None:
    """Mixed ranks, positions and formulas beside a base row; prompts in chunks."""
    model = tiny_model(arch, num_hidden_layers=2)
    ends = make_set(model, *({"positions": "f2+l2", "layer": layer} for layer in (0, 1)), seed=1)
    everywhere = make_set(model, {"positions": "all", "low_rank_dimension": 3, "layer": 0}, seed=2)
    scaled = make_set(model, {"formula": "scale_shift", "positions": "all", "layer": 1}, seed=3)
    cases = [
        Case(prompt(11, 1), max_tokens=3),
        Case(prompt(9, 2), ((ends, 1.0),), max_tokens=3),
        Case(prompt(3, 3), ((everywhere, -0.5), (ends, 2.0)), max_tokens=3),
        Case(prompt(2, 4), ((scaled, 1.0),), max_tokens=3),
    ]
    check(start_engine(model, **SETTINGS), model, cases)


@pytest.mark.parametrize(
    "component", ["block_input", "attention_input", "query_output", "attention_value_output", "mlp_activation"]
)
def test_triton_path_edits_other_components(component: str, tiny_model: Any, make_set: Any, start_engine: Any) -> None:
    model = tiny_model("qwen3", num_hidden_layers=2)
    tested = make_set(model, {"component": component, "positions": "all", "layer": 1}, seed=4)
    check(start_engine(model, **SETTINGS), model, [Case(prompt(5, 5), ((tested, 1.0),), max_tokens=2)])


def test_blocks_of_the_prefix_cache_are_borrowed_not_copied(tiny_model: Any, make_set: Any, start_engine: Any) -> None:
    """The same start thrice: base, then an edit behind it, then the whole prompt again, tail included."""
    model = tiny_model("llama", num_hidden_layers=2)
    engine = start_engine(model, **SETTINGS)
    last = make_set(model, {"positions": "l1", "layer": 0}, {"positions": "l1", "layer": 1}, seed=6)
    start = prompt(37, 7)
    for case in (
        Case(start, max_tokens=2),
        Case((*start, 3, 4), ((last, 1.0),), max_tokens=2),
        Case((*start, 3, 4), ((last, 1.0),), max_tokens=2),
        Case((*start, 3), max_tokens=2),
    ):
        check(engine, model, [case])
    assert engine.stats().num_prefix_hit_tokens >= 3 * 32


@pytest.mark.parametrize("products", ["auto", "triton"])
def test_graphs_one_step_ahead_match_reference(products: Any, tiny_model: Any, make_set: Any) -> None:
    """Recorded graphs, tokens chosen behind them, and the next step launched before they are read."""
    model = tiny_model("llama", num_hidden_layers=2)
    ends = make_set(model, *({"positions": "f2+l2", "layer": layer} for layer in (0, 1)), seed=1)
    everywhere = make_set(model, {"positions": "all", "low_rank_dimension": 3, "layer": 0}, seed=2)
    cases = [
        Case(prompt(9, 1), max_tokens=4),
        Case(prompt(5, 2), ((ends, 1.0),), max_tokens=3),
        Case(prompt(2, 3), ((everywhere, -0.5),), max_tokens=5),
    ]
    options = EngineSettings(
        kv_cache_bytes=1 << 20, prefix_cache_bytes=1 << 18, max_model_len=256, products=products, **SETTINGS
    )
    built = build_engine(copy.deepcopy(model), "tiny", options)
    assert isinstance(built._model, PackedModel)
    graphed = GraphedModel(built._model, max_num_seqs=4, max_model_len=256, capture=RecordedGraphs())
    engine = LocalEngine(graphed, built.model_info, options, built._sizes)
    engine.start()
    check(engine, model, cases)
    asyncio.run(engine.stop())
    assert graphed.num_replays > 0
    assert engine.stats().kv_cache_usage == 0
