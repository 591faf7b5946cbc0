"""Search: deterministic under a seed, without repeats, most trials stopped early, the best one kept."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from reft_interventions.errors import TrainingError
from reft_interventions.training import TrainingOptions, read_dataset, train
from reft_interventions.training.charts import Series, line_chart, nice_ticks
from reft_interventions.training.search import SearchSpace, search

OPTIONS = TrainingOptions(epochs=3, lr=0.05, batch_size=6, max_length=64, seed=3)
SPACE = SearchSpace(layers=("1", "0;2", "all"), ranks=(1, 4), positions=("l1", "f2+l2"))


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def dataset(tokenizer, write_rows, pairs):
    return read_dataset(write_rows(pairs), tokenizer, 64)


def without_seconds(result):
    return [dataclasses.replace(trial, seconds=0.0) for trial in result.trials]


def test_search_is_deterministic_and_its_best_is_what_train_makes(model, tokenizer, dataset):
    result = search(model, tokenizer, OPTIONS, dataset, dataset, SPACE, 6)
    again = search(model, tokenizer, OPTIONS, dataset, dataset, SPACE, 6)
    assert without_seconds(again) == without_seconds(result)
    chosen = [(trial.layers, trial.low_rank_dimension, trial.positions) for trial in result.trials]
    assert len(set(chosen)) == len(chosen) == 6
    pruned = [trial for trial in result.trials if trial.is_pruned]
    assert pruned
    assert all(len(trial.eval_losses) < OPTIONS.epochs for trial in pruned)
    complete = [trial for trial in result.trials if not trial.is_pruned]
    best = result.trials[result.best]
    assert best.eval_losses[-1] == min(trial.eval_losses[-1] for trial in complete)
    alone = train(model, tokenizer, result.options, dataset, dataset).intervention_set
    assert alone.content_hash == result.training.intervention_set.content_hash
    other = search(model, tokenizer, dataclasses.replace(OPTIONS, seed=4), dataset, dataset, SPACE, 6)
    assert [t.layers for t in other.trials] != [t.layers for t in result.trials]


def test_search_ends_with_the_grid(model, tokenizer, dataset):
    space = SearchSpace(("1",), (1, 2), ("l1",))
    ended = []
    result = search(model, tokenizer, OPTIONS, dataset, dataset, space, 50, on_trial=ended.append)
    assert ended == list(result.trials)
    assert len(ended) == 2


def test_default_space_fits_any_depth():
    for num_layers in (1, 2, 4, 30):
        space = SearchSpace.default(num_layers)
        for layers in space.layers:
            assert TrainingOptions(layers=layers).layer_numbers(num_layers)
    assert SearchSpace.default(30).layers == ("7", "15", "22", "7;15;22", "all")


def test_search_without_optuna_says_what_to_install(model, tokenizer, dataset, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(TrainingError, match=r"reft-serve\[train\]"):
        search(model, tokenizer, OPTIONS, dataset, dataset, SPACE, 1)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 3.3), (5, 5), (0, 123456), (-2, 7), (0, 0)])
def test_ticks_are_round_and_cover_the_values(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9


def test_chart_thins_long_curves_and_escapes_labels():
    points = [(float(x), float(x % 2)) for x in range(5000)]
    chart = line_chart("a <b>", "x & y", "loss", [Series("<i>", "#000", points), Series("empty", "#000", [])])
    assert "<b>" not in chart
    assert "<i>" not in chart
    assert "x &amp; y" in chart
    assert "empty" not in chart
    assert chart.count(",") < 1000
