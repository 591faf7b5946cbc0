"""The engine over a base model with a LoRA or DoRA merged in, against PEFT's unmerged model with hooks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from reft_interventions.merging import merge_adapter
from tests.adapters import load_adapter, save_adapter
from tests.parity.harness import Case, Comparison, reference, run_together


@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_engine_on_a_merged_base_matches_pefts_model(
    use_dora: bool, tiny_model: Any, make_set: Any, start_engine: Any, tmp_path: Path
) -> None:
    base = tiny_model("llama")
    folder = save_adapter(base, tmp_path, use_dora=use_dora)
    merged = merge_adapter(copy.deepcopy(base), folder)
    unmerged = load_adapter(base, folder).get_base_model()
    one = make_set(merged, {"positions": "f2+l2"})
    cases = [Case((7, 9, 11, 80, 3)), Case((7, 9, 11, 80, 3), ((one, 1.0),)), Case((100, 4), ((one, -0.5),))]
    expected = [reference(unmerged, case) for case in cases]
    assert expected[0].token_ids != reference(base, cases[0]).token_ids
    comparison = Comparison()
    for path in ("native", "packed", "generic"):
        for case, got, want in zip(
            cases, run_together(start_engine(merged, model_path=path), cases), expected, strict=True
        ):
            comparison.check(case, got, want)
    comparison.verdict()
