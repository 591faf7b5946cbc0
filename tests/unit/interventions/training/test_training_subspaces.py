"""Two tasks in one set: a row moves and trains the rank dimensions of its own subspace alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reft_interventions import FORMULAS
from reft_interventions.errors import TrainingError
from reft_interventions.training import Trainer, TrainingOptions, evaluate, read_dataset
from reft_interventions.training.batches import collate
from reft_interventions.training.loss import answer_logits, answer_loss
from reft_interventions.training.subspaces import parse_subspaces

OPTIONS = TrainingOptions(
    layers="1;2", low_rank_dimension=5, positions="f2+l2", epochs=8, lr=0.03, batch_size=4, max_length=64,
    subspaces="upper=0,3;lower=1,2", start="random",
)  # fmt: skip


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def dataset(tokenizer, write_rows, pairs):
    """Each prompt twice: `upper` answers in capitals, `lower` in small letters; one row belongs to neither."""
    rows = [{**pair, "subspace": "lower"} for pair in pairs]
    rows += [{**pair, "completion": pair["completion"].upper(), "subspace": "upper"} for pair in pairs]
    return read_dataset(write_rows([*rows, pairs[0]]), tokenizer, 64)


def test_subspaces_are_read_and_bad_ones_refused():
    assert parse_subspaces("a=0,1; b=3", 4) == {"a": (0, 1), "b": (3,)}
    assert parse_subspaces("", 4) == {}
    for text in ("a", "a=", "a=0;a=1", "a=0;b=0", "a=1,1", "a=4", "=1", "a=-1"):
        with pytest.raises(TrainingError, match="subspaces"):
            parse_subspaces(text, 4)


@pytest.mark.parametrize("formula", ["loreft", "noreft", "direft", "nodireft", "consreft", "lobireft"])
def test_gradient_of_a_row_touches_only_its_dimensions(model, tokenizer, dataset, formula):
    trainer = Trainer(model, tokenizer, dataclasses.replace(OPTIONS, formula=formula), dataset)
    for name, own in (("upper", [0, 3]), ("lower", [1, 2])):
        batch = collate([example for example in dataset.examples if example.subspace == name], 0)
        answer_loss(model, batch, trainer.trainable.site_edits(batch)).backward()
        for key, parameter in trainer.trainable.named_parameters().items():
            gradient = parameter.grad if parameter.shape[0] == 5 else parameter.grad.T
            others = [dimension for dimension in range(5) if dimension not in own]
            assert (gradient[others] == 0).all(), key
            assert (gradient[own] != 0).any(), key
            parameter.grad = None


def test_mixed_batch_equals_each_row_alone_with_the_other_dimensions_zeroed(model, tokenizer, dataset):
    trainer = Trainer(model, tokenizer, OPTIONS, dataset)
    batch = collate(dataset.examples, 0)
    dimensions = {"upper": [0, 3], "lower": [1, 2], None: [0, 1, 2, 3, 4]}
    original = {name: value.detach().clone() for name, value in trainer.trainable.named_parameters().items()}
    with torch.no_grad():
        logits, labels = answer_logits(model, batch, trainer.trainable.site_edits(batch))
        for row, example in enumerate(dataset.examples):
            kept = torch.zeros(5)
            kept[dimensions[example.subspace]] = 1
            for name, parameter in trainer.trainable.named_parameters().items():
                parameter.copy_(original[name] * (kept[:, None] if parameter.shape == (5, 32) else kept))
            alone, _ = answer_logits(model, collate([example], 0), trainer.trainable.site_edits())
            torch.testing.assert_close(logits[row][labels[row] != -100], alone[0], atol=1e-4, rtol=1e-4)


def test_two_tasks_learned_together_are_told_apart_by_the_subspace(model, tokenizer, dataset):
    trainer = Trainer(model, tokenizer, dataclasses.replace(OPTIONS, epochs=20), dataset, dataset)
    result = trainer.run()
    assert result.after.loss < 0.7 * result.before.loss
    assert result.orthonormality_error < 1e-5
    assert result.intervention_set.manifest.subspaces == {"upper": (0, 3), "lower": (1, 2)}
    other = {"upper": "lower", "lower": "upper", None: None}
    swapped = [dataclasses.replace(example, subspace=other[example.subspace]) for example in dataset.examples]
    assert evaluate(model, swapped, trainer.trainable.site_edits, 0, 8).loss > 1.1 * result.after.loss


def test_row_of_an_unknown_subspace_is_refused_by_line(model, tokenizer, dataset):
    with pytest.raises(TrainingError, match="line 13: --subspaces names no 'upper'"):
        Trainer(model, tokenizer, dataclasses.replace(OPTIONS, subspaces="lower=1"), dataset)


def test_formula_without_rank_dimensions_is_refused():
    for formula in FORMULAS.values():
        if not formula.has_subspaces:
            with pytest.raises(TrainingError, match="no rank dimensions"):
                dataclasses.replace(OPTIONS, formula=formula.id)
