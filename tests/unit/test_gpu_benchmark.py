"""The GPU benchmark runs from end to end with a tiny model, so that it can't rot between two GPUs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.figures import read_result
from benchmarks.gpu import run as running
from benchmarks.gpu.checks import exactness, num_wrong_answers
from benchmarks.gpu.inputs import random_model
from benchmarks.gpu.plan import dry_plan, full_plan
from benchmarks.gpu.run import UNFINISHED, finish, run
from benchmarks.gpu.targets import table, verdicts
from reft_server.engine import EngineSettings, LocalEngine, build, build_engine
from reft_server.engine.cuda import GraphedModel
from reft_server.engine.cuda.attention import TritonAttention
from reft_server.engine.device import CacheSizes
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.single import Model
from reft_server.engine.types import ModelInfo
from tests.recorded_graphs import RecordedGraphs

SECTIONS = (
    "ceilings",
    "exactness",
    "load",
    "decode",
    "prefill",
    "edit_kernels",
    "activation",
    "throughput",
    "shared_prefix",
    "attention_kernels",
    "products",
    "decode_cublas",
    "generate",
    "generate_compiled",
)


@pytest.fixture
def decode_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines with kernels over pages have decode graphs, and so steps that are launched ahead, as on a GPU."""

    def make_engine(model: Model, info: ModelInfo, settings: EngineSettings, sizes: CacheSizes) -> LocalEngine:
        if isinstance(model, PackedModel) and model.kernels.is_paged:
            bounds = {"max_num_seqs": settings.max_num_seqs, "max_model_len": info.max_model_len}
            model = GraphedModel(model, **bounds, capture=RecordedGraphs())
        return LocalEngine(model, info, settings, sizes)

    monkeypatch.setattr(build, "LocalEngine", make_engine)


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_runs_and_every_figure_has_its_line(
    decode_graphs: None, tmp_path: Path
) -> None:
    result = run(dry_plan(), tmp_path)
    assert set(result["seconds"]) == set(SECTIONS)
    for name in SECTIONS:
        assert not result[name].keys() & {"failed", "cut_after_s"}, result[name]
    assert max(result["exactness"].values()) <= 1e-4
    [cell] = result["decode"]["cells"]
    assert cell["batch"] == 2
    assert cell["base_replays"] == cell["all_replays"] > 0
    assert result["prefill"]["all_tokens_per_s"] > 0
    assert set(result["edit_kernels"]) == {"no edit", "one set", "8 sets", "distinct"}
    assert [(mix["positions"], mix["num_distinct"]) for mix in result["throughput"]["mixes"]] == [
        ("f7+l7", 2),
        ("all", 2),
    ]
    assert set(result["generate"]) == {"batch 2", "batch 2, hooks"}
    shown = {one.figure for one in verdicts(result)}
    # 2 and 2 of decode steps, 3 of prompts, 4, 3 and 5 of kernels, 2 of activation, 2 mixes, 1 prefix, 3 comparisons.
    assert len(shown) == len(verdicts(result)) == 27
    assert json.loads((tmp_path / UNFINISHED).read_text()) == result
    finish(tmp_path)
    assert read_result("gpu", tmp_path) == result
    assert not (tmp_path / UNFINISHED).exists()


def test_check_of_answers_tells_an_engine_of_other_weights() -> None:
    plan = replace(dry_plan(), num_exactness_requests=6)
    config = {**plan.config, "hidden_size": 64, "vocab_size": 256}

    def make_engine(factor: float) -> LocalEngine:
        model = random_model(config, torch.float32, plan.device)
        model.lm_head.weight.mul_(torch.linspace(1.0, factor, 256)[:, None])
        return build_engine(model, "tiny", EngineSettings(model_path="packed", kernels="torch"))

    assert asyncio.run(num_wrong_answers(plan, make_engine(1.0), make_engine(1.0))) == 0
    assert asyncio.run(num_wrong_answers(plan, make_engine(1.0), make_engine(2.0))) > 0


def make_recorder(folder: Path | None, only: frozenset[str] = frozenset()) -> Any:
    return running._Recorder(dry_plan(), folder, only)


def test_section_that_takes_too_long_is_cut_and_keeps_what_it_had() -> None:
    recorder = make_recorder(None)

    def slow(found: dict[str, Any]) -> None:
        found["first"] = 1
        try:
            time.sleep(30)
        except Exception:  # noqa: BLE001 - what a library might do
            found["swallowed"] = True

    assert not recorder.run("slow", 0.01, slow)
    assert recorder.result["slow"] == {"first": 1, "cut_after_s": 0.0}
    assert recorder.run("next", 10, lambda found: found.update(second=2))
    assert not recorder.run("late", -1, lambda found: found.update(third=3))
    assert recorder.result["late"] == {"cut_after_s": -1}


def test_section_that_hangs_in_the_device_ends_the_process_with_what_was_found(tmp_path: Path) -> None:
    """Python's handlers don't run meanwhile, as if the signal were blocked."""
    script = f"""
import signal, time
from pathlib import Path
from benchmarks.gpu import run
from benchmarks.gpu.plan import dry_plan
run._HANGS_AFTER_S = 0.2
recorder = run._Recorder(dry_plan(), Path({str(tmp_path)!r}))
recorder.run("good", 10, lambda found: found.update(figure=1))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
recorder.run("hangs", 0.1, lambda found: time.sleep(30))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "in <lambda>" in done.stderr
    assert json.loads((tmp_path / UNFINISHED).read_text())["good"] == {"figure": 1}


def test_section_that_fails_is_reported_and_is_on_disk_with_the_others(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    recorder.run("good", 10, lambda found: found.update(figure=1))

    def bad(found: dict[str, Any]) -> None:
        found["before"] = 2
        raise ValueError("no kernel image")

    assert not recorder.run("bad", 10, bad)
    kept = json.loads((tmp_path / UNFINISHED).read_text())
    assert kept["good"] == {"figure": 1}
    assert kept["bad"] == {"before": 2, "failed": "ValueError: no kernel image"}


def test_run_that_was_killed_is_appended_by_the_next_one(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    recorder.run("exactness", 10, lambda found: found.update(base=1e-6))
    recorder.run("only", 10, lambda found: found.update(figure=1))
    finish(tmp_path)
    finish(tmp_path)
    assert read_result("gpu", tmp_path)["only"] == {"figure": 1}
    assert len((tmp_path / "gpu.jsonl").read_text().splitlines()) == 1


def test_figures_of_a_path_that_is_not_exact_are_kept_apart(tmp_path: Path) -> None:
    recorder = make_recorder(tmp_path)
    recorder.run("exactness", 0, lambda found: found.update(base=1e-6))
    recorder.run("decode", 10, lambda found: found.update(figure=1))
    finish(tmp_path)
    assert read_result("gpu-inexact", tmp_path)["decode"] == {"figure": 1}
    assert not (tmp_path / "gpu.jsonl").exists()


def test_some_sections_by_themselves_do_not_replace_a_whole_run(tmp_path: Path) -> None:
    for only in (frozenset[str](), frozenset({"prefill"})):
        recorder = make_recorder(tmp_path, only)
        recorder.run("exactness", 10, lambda found: found.update(base=1e-6))
        finish(tmp_path)
    assert "only_sections" not in read_result("gpu", tmp_path)
    assert read_result("gpu-partial", tmp_path)["only_sections"] == ["prefill"]


def test_inexact_logits_are_told_by_chunk_and_beside_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = replace(dry_plan(), num_exactness_requests=1, num_churned_sets=1)
    monkeypatch.setattr(TritonAttention, "attend", lambda *args: torch.full_like(args[2], torch.nan))
    monkeypatch.setattr(build, "check_exact", lambda *_: None)
    found: dict[str, Any] = {}
    with pytest.raises(
        RuntimeError, match=r"attention of the large model: .* by nan .*logits, base: inf .* 1 wrong ans"
    ):
        exactness(plan, found)
    assert found["base by chunk"] == [torch.inf] * len(plan.exactness_chunks)
    assert found["base by torch"] <= 1e-6
    assert found["wrong copies"] == 0


def test_time_budgets_of_a_whole_run_stay_under_eight_minutes() -> None:
    assert running.TOTAL_S < 8 * 60
    assert full_plan().is_on_gpu


@pytest.mark.parametrize(
    ("section", "figures", "is_met"),
    [
        ("decode", {"cells": [{"batch": 1, "context": 512, "base_ms": 4.0, "base_share": 0.8}]}, True),
        ("decode", {"cells": [{"batch": 256, "context": 512, "base_ms": 9.0, "base_share": 0.69}]}, False),
        ("decode", {"cells": [{"batch": 8, "context": 512, "base_ms": 9.0, "base_share": 0.2}]}, None),
        ("prefill", {"num_tokens": 8192, "base_share": 0.71, "base_tokens_per_s": 40000.0}, True),
        (
            "throughput",
            {"mixes": [{"positions": "all", "num_distinct": 8, "over_base": 0.84, "base_tokens_per_s": 1.0}]},
            False,
        ),
        ("activation", {"from_host_ms": 1.2}, False),
        ("activation", {"from_disk_ms": 20.0}, True),
        ("shared_prefix", {"over_base": 1.3}, False),
        ("edit_kernels", {"distinct": {"us": 10.0, "gb_per_s": 600.0}}, True),
        ("edit_kernels", {"failed": "OutOfMemoryError: "}, "nothing"),
    ],
)
def test_verdict_compares_a_figure_with_its_target(section: str, figures: dict[str, Any], is_met: object) -> None:
    result = {"ceilings": {"copy_gb_per_s": 1000.0}, section: figures}
    found = [one.is_met for one in verdicts(result)]
    assert found == ([] if is_met == "nothing" else [is_met])
    assert len(table(result).rows) == len(found)
