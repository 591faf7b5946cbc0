"""The training loop: it learns, keeps R orthonormal, edits where the server will, and resumes exactly."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reft_interventions import FORMULAS, attach, base_model_spec, load, save, validate_for_base
from reft_interventions.components import COMPONENTS
from reft_interventions.errors import TrainingError, UnsupportedComponentError
from reft_interventions.training import Trainer, TrainingOptions, evaluate, read_dataset, train
from reft_interventions.training.batches import collate
from reft_interventions.training.loss import answer_logits
from reft_interventions.training.schedule import learning_rate

OPTIONS = TrainingOptions(
    layers="1;2", low_rank_dimension=3, positions="f2+l2", epochs=8, lr=0.03, batch_size=4, max_length=64, seed=5
)


@pytest.fixture
def dataset(tokenizer, write_rows, pairs):
    return read_dataset(write_rows(pairs), tokenizer, 64)


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.mark.parametrize("formula", sorted(FORMULAS.keys() - {"dii"}))  # which learns from pairs of prompts
def test_training_lowers_the_loss_and_leaves_the_base_model_alone(model, tokenizer, dataset, formula):
    original = {name: value.clone() for name, value in model.state_dict().items()}
    # A constant vector can do little at two layers of a random model, and has far to go.
    lr = 0.5 if formula in ("addition", "lobireft") else OPTIONS.lr
    options = dataclasses.replace(OPTIONS, formula=formula, lr=lr)
    result = train(model, tokenizer, options, dataset, dataset, model_id="tiny")
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < 0.9 * result.before.loss
    assert all(torch.equal(value, original[name]) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    validate_for_base(result.intervention_set, base_model_spec(model, "tiny"))


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("formula", ["loreft", "direft", "consreft", "lobireft"])
def test_rotation_stays_orthonormal_under_weight_decay(model, tokenizer, dataset, formula, weight_decay):
    options = dataclasses.replace(OPTIONS, formula=formula, weight_decay=weight_decay)
    result = train(model, tokenizer, options, dataset)
    assert result.orthonormality_error < 1e-5
    for group in result.intervention_set.parameters:
        columns = group["rotate_layer"].double()
        assert (columns.T @ columns - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-5


def test_rotation_is_trained(model, tokenizer, dataset):
    trained = train(model, tokenizer, OPTIONS, dataset).intervention_set
    barely = train(model, tokenizer, dataclasses.replace(OPTIONS, lr=1e-9), dataset).intervention_set
    for after, start in zip(trained.parameters, barely.parameters, strict=True):
        # Subspaces, not columns: a rotation inside the subspace is no progress.
        overlap = (after["rotate_layer"].T @ start["rotate_layer"]).square().sum()
        assert overlap < 2.9


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["f2+l2", "l1", "f3", "prompt", "all", "0,-2"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_training_forward_equals_the_saved_set_under_attach(
    model, tokenizer, dataset, tmp_path, side, positions, is_tied
):
    if not is_tied and "+" not in positions:
        is_tied = True
    options = dataclasses.replace(OPTIONS, positions=positions, is_tied=is_tied, epochs=2)
    trainer = Trainer(model, tokenizer, options, dataset)
    path = tmp_path / "set.safetensors"
    save(trainer.run().intervention_set, path)
    batch = collate(dataset.examples, 0, side)
    with torch.no_grad():
        live, labels = answer_logits(model, batch, trainer.trainable.site_edits())
        with attach(model, load(path), prompt_lengths=batch.prompt_lengths):
            served = model(
                batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
            ).logits
    served = served[:, -labels.shape[1] :]
    is_answer = labels != -100
    torch.testing.assert_close(live[is_answer], served[is_answer], atol=1e-5, rtol=1e-5)


def test_exact_match_is_what_generate_writes(model, tokenizer, write_rows, pairs):
    rows = [{**row, "completion": row["completion"][0]} for row in pairs]
    dataset = read_dataset(write_rows(rows, "short.jsonl"), tokenizer, 64)
    options = dataclasses.replace(OPTIONS, layers="all", positions="all", epochs=60)
    trained = train(model, tokenizer, options, dataset).intervention_set
    num_exact = 0
    for example in dataset.examples:
        with attach(model, trained):
            output = model.generate(
                torch.tensor([example.prompt_ids]),
                max_new_tokens=len(example.answer_ids),
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
            )
        num_exact += tuple(output[0, len(example.prompt_ids) :].tolist()) == example.answer_ids
    assert num_exact > 6
    trainer = Trainer(model, tokenizer, options, dataset)
    trainer.trainable.load(trained.named_tensors())
    edits = trainer.trainable.site_edits()
    assert evaluate(model, dataset.examples, edits, 0, 4).exact_match == num_exact / len(dataset.examples)


def test_start_at_base_changes_nothing_before_the_first_step(model, tokenizer, dataset):
    batch = collate(dataset.examples, 0)
    for formula in ("loreft", "noreft", "direft", "nodireft"):
        trainer = Trainer(model, tokenizer, dataclasses.replace(OPTIONS, formula=formula), dataset)
        with torch.no_grad():
            edited, _ = answer_logits(model, batch, trainer.trainable.site_edits())
            plain, _ = answer_logits(model, batch, [])
        torch.testing.assert_close(edited, plain, atol=1e-4, rtol=1e-4)


def test_accumulated_step_equals_one_large_batch(model, tokenizer, dataset):
    large = train(model, tokenizer, dataclasses.replace(OPTIONS, batch_size=6), dataset)
    small = train(model, tokenizer, dataclasses.replace(OPTIONS, batch_size=2, gradient_accumulation=3), dataset)
    assert small.progress.losses == pytest.approx(large.progress.losses, rel=1e-3)


def test_same_seed_gives_the_same_set_and_another_seed_another(model, tokenizer, dataset):
    first = train(model, tokenizer, OPTIONS, dataset).intervention_set
    again = train(model, tokenizer, OPTIONS, dataset).intervention_set
    other = train(model, tokenizer, dataclasses.replace(OPTIONS, seed=6), dataset).intervention_set
    assert first.content_hash == again.content_hash
    assert first.content_hash != other.content_hash


class InterruptedRunError(Exception):
    """Raised by a reporter, as a kill would."""


class InterruptAt:
    """A reporter that stops the run after a step."""

    def __init__(self, step):
        self._step = step

    def preparing(self, *_):
        return

    def started(self, *_):
        return

    def evaluated(self, *_):
        return

    def stepped(self, step, *_):
        if step == self._step:
            raise InterruptedRunError


@pytest.mark.parametrize("stop_at", [4, 6, 8])
@pytest.mark.parametrize(("patience", "dropout"), [(None, 0.0), (3, 0.0), (None, 0.2)])
def test_resumed_run_equals_an_uninterrupted_one(model, tokenizer, dataset, tmp_path, stop_at, patience, dropout):
    options = dataclasses.replace(OPTIONS, save_every=2, weight_decay=0.1, patience=patience, dropout=dropout)
    whole = Trainer(model, tokenizer, options, dataset, dataset, checkpoint=tmp_path / "whole").run()
    path = tmp_path / "checkpoint"
    with pytest.raises(InterruptedRunError):
        Trainer(model, tokenizer, options, dataset, dataset, checkpoint=path).run(InterruptAt(stop_at))
    resumed = Trainer(model, tokenizer, options, dataset, dataset, checkpoint=path)
    resumed.resume()
    result = resumed.run()
    assert result.progress == whole.progress
    assert result.intervention_set.content_hash == whole.intervention_set.content_hash
    assert result.orthonormality_error < 1e-5


def test_checkpoint_of_another_run_and_damaged_ones_are_refused(model, tokenizer, dataset, tmp_path):
    path = tmp_path / "checkpoint"
    options = dataclasses.replace(OPTIONS, save_every=1, epochs=1)
    Trainer(model, tokenizer, options, dataset, checkpoint=path).run()
    other = Trainer(model, tokenizer, dataclasses.replace(options, lr=0.5), dataset, checkpoint=path)
    with pytest.raises(TrainingError, match="other options, data or base model"):
        other.resume()
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match="can't be read"):
        Trainer(model, tokenizer, options, dataset, checkpoint=path).resume()
    path.unlink()
    with pytest.raises(TrainingError, match="can't be read"):
        Trainer(model, tokenizer, options, dataset, checkpoint=path).resume()


def test_patience_stops_and_keeps_the_best_epoch(model, tokenizer, dataset):
    options = dataclasses.replace(OPTIONS, lr=1.0, epochs=50, patience=2)
    result = train(model, tokenizer, options, dataset, dataset)
    losses = result.progress.eval_losses
    assert len(losses) < 50
    assert losses[-3] == min(losses)
    assert result.after is not None
    assert result.after.loss == pytest.approx(min(losses), rel=1e-5)


def test_loss_that_is_not_finite_stops_the_run(tiny_model, tokenizer, dataset):
    broken = tiny_model("llama", seed=99)
    broken.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        train(broken, tokenizer, OPTIONS, dataset)


def test_bfloat16_products_learn_too_and_parameters_stay_float32(model, tokenizer, dataset):
    options = dataclasses.replace(OPTIONS, precision="bfloat16")
    result = train(model, tokenizer, options, dataset, dataset)
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < 0.8 * result.before.loss
    assert {value.dtype for value in result.intervention_set.named_tensors().values()} == {torch.float32}


@pytest.mark.parametrize("architecture_name", ["gemma2", "gpt2", "gpt_neox"])
def test_training_works_on_other_architectures(tiny_model, tokenizer, dataset, architecture_name):
    options = dataclasses.replace(OPTIONS, layers="all", lr=0.01)
    result = train(tiny_model(architecture_name), tokenizer, options, dataset, dataset)
    assert result.before is not None
    assert result.after is not None
    assert result.after.loss < result.before.loss


def test_untied_set_has_two_groups_a_layer_and_the_manifest_tells_the_run(model, tokenizer, dataset):
    options = dataclasses.replace(OPTIONS, is_tied=False)
    manifest = train(model, tokenizer, options, dataset, dataset, model_id="tiny").intervention_set.manifest
    assert [(spec.layer, spec.part, spec.parameters) for spec in manifest.interventions] == [
        (1, "prefix", 0), (1, "suffix", 1), (2, "prefix", 2), (2, "suffix", 3),
    ]  # fmt: skip
    assert manifest.base_model.fingerprint == base_model_spec(model, "tiny").fingerprint
    assert manifest.training["data_sha256"] == dataset.sha256
    assert manifest.training["options"]["seed"] == 5
    assert manifest.training["last_loss"] < manifest.training["first_loss"]
    assert manifest.training["after"]["loss"] < manifest.training["before"]["loss"]


def test_learning_rate_warms_up_and_decays_linearly():
    options = TrainingOptions(lr=1.0, warmup_ratio=0.1)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[:2] == pytest.approx([0.1, 0.2])
    assert rates[9] == rates[10] == 1.0
    assert rates[99] == pytest.approx(1 / 90)
    assert rates[55] == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"formula": "lora"},
        {"positions": "generated"},
        {"positions": "l2", "is_tied": False},
        {"epochs": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"warmup_ratio": 2.0},
        {"eval_fraction": 1.0},
        {"patience": 0},
        {"heads": "0"},
        {"component": "head_query_output"},
        {"dropout": 1.0},
        {"eval_every": -1},
        {"eval_every": 2, "patience": 2},
        {"subspaces": "a=0;b=0"},
        {"subspaces": "a=0,4"},
        {"subspaces": "a:0"},
        {"subspaces": "a=0", "formula": "addition"},
        {"act": "relu", "formula": "lobireft"},
        {"precision": "int8"},
    ],
)
def test_bad_options_are_refused_by_name(change):
    with pytest.raises(TrainingError) as caught:
        TrainingOptions(**change)
    assert caught.value.param in (*change, "is_tied", "positions", "heads")


@pytest.mark.parametrize("layers", ["", "x", "1;1", "-1", "4", "1..2"])
def test_bad_layers_are_refused(layers):
    with pytest.raises(TrainingError, match="layer"):
        TrainingOptions(layers=layers).layer_numbers(4)


@pytest.mark.parametrize(("layers", "expected"), [("all", (0, 1, 2, 3)), ("3;1", (1, 3)), ("0, 2", (0, 2))])
def test_layers_are_read(layers, expected):
    assert TrainingOptions(layers=layers).layer_numbers(4) == expected


def test_unknown_component_is_refused():
    with pytest.raises(UnsupportedComponentError):
        TrainingOptions(component="heads")


def test_patience_without_held_out_rows_is_refused(model, tokenizer, dataset):
    with pytest.raises(TrainingError, match="held-out"):
        Trainer(model, tokenizer, dataclasses.replace(OPTIONS, patience=2), dataset)


def test_rotation_is_orthonormal_after_resuming_and_two_hundred_more_steps(model, tokenizer, dataset, tmp_path):
    options = dataclasses.replace(OPTIONS, layers="1", epochs=112, batch_size=6, save_every=20, lr=0.05)
    path = tmp_path / "checkpoint"
    with pytest.raises(InterruptedRunError):
        Trainer(model, tokenizer, options, dataset, checkpoint=path).run(InterruptAt(21))
    resumed = Trainer(model, tokenizer, options, dataset, checkpoint=path)
    resumed.resume()
    result = resumed.run()
    assert result.progress.step - 20 >= 200
    (group,) = result.intervention_set.parameters
    columns = group["rotate_layer"].double()
    assert (columns.T @ columns - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-5


def test_layers_tied_share_one_group_that_all_of_them_train(model, tokenizer, dataset):
    options = dataclasses.replace(OPTIONS, is_tied_across_layers=True)
    result = train(model, tokenizer, options, dataset, dataset, model_id="tiny")
    specs = result.intervention_set.manifest.interventions
    assert [(spec.layer, spec.parameters) for spec in specs] == [(1, 0), (2, 0)]
    assert result.after.loss < 0.9 * result.before.loss
    untied = dataclasses.replace(options, is_tied=False)
    specs = train(model, tokenizer, untied, dataset).intervention_set.manifest.interventions
    assert [(spec.layer, spec.part, spec.parameters) for spec in specs] == [
        (1, "prefix", 0), (1, "suffix", 1), (2, "prefix", 0), (2, "suffix", 1),
    ]  # fmt: skip
    at_one_layer = train(model, tokenizer, dataclasses.replace(options, layers="1"), dataset).intervention_set
    assert not torch.equal(
        at_one_layer.parameters[0]["rotate_layer"], result.intervention_set.parameters[0]["rotate_layer"]
    )


def test_dropout_hits_the_delta_of_a_training_step_and_nothing_else(model, tokenizer, dataset):
    options = dataclasses.replace(OPTIONS, dropout=0.4, start="random", layers="1")
    trainer = Trainer(model, tokenizer, options, dataset)
    rows = torch.randn(200, 32)
    (plain,) = (edit.function(rows) - rows for edit in trainer.trainable.site_edits())
    generator = torch.Generator().manual_seed(0)
    (dropped,) = (edit.function(rows) - rows for edit in trainer.trainable.site_edits(None, generator))
    is_kept = dropped != 0
    assert is_kept.float().mean().item() == pytest.approx(0.6, abs=0.03)
    torch.testing.assert_close(dropped[is_kept], (plain / 0.6)[is_kept], atol=1e-5, rtol=1e-4)
    assert (
        train(model, tokenizer, options, dataset, dataset).after
        == train(model, tokenizer, options, dataset, dataset).after
    )
    without = train(model, tokenizer, dataclasses.replace(options, dropout=0.0), dataset)
    assert without.progress.losses != train(model, tokenizer, options, dataset).progress.losses


def test_held_out_rows_are_scored_after_each_epoch_unless_told_otherwise(model, tokenizer, dataset):
    assert len(train(model, tokenizer, OPTIONS, dataset, dataset).progress.eval_losses) == OPTIONS.epochs
    rarely = dataclasses.replace(OPTIONS, eval_every=3)
    assert len(train(model, tokenizer, rarely, dataset, dataset).progress.eval_losses) == 2
    never = dataclasses.replace(OPTIONS, eval_every=0)
    result = train(model, tokenizer, never, dataset, dataset)
    assert result.progress.eval_losses == []
    assert result.after is not None


@pytest.mark.parametrize("component", sorted(COMPONENTS))
def test_every_component_is_trained_at_its_own_width(model, tokenizer, dataset, tmp_path, component):
    heads = "0,1" if component.startswith("head_") else ""
    options = dataclasses.replace(OPTIONS, component=component, heads=heads, epochs=2, start="random")
    trainer = Trainer(model, tokenizer, options, dataset, dataset, model_id="tiny")
    result = trainer.run()
    assert result.progress.losses[0] != result.progress.losses[-1]
    validate_for_base(result.intervention_set, base_model_spec(model, "tiny"))
    path = tmp_path / "set.safetensors"
    save(result.intervention_set, path)
    batch = collate(dataset.examples, 0)
    with torch.no_grad():
        live, labels = answer_logits(model, batch, trainer.trainable.site_edits())
        with attach(model, load(path), prompt_lengths=batch.prompt_lengths):
            served = model(batch.input_ids, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    is_answer = labels != -100
    torch.testing.assert_close(live[is_answer], served[:, -labels.shape[1] :][is_answer], atol=1e-5, rtol=1e-5)
    if heads:
        specs = result.intervention_set.manifest.interventions
        assert [(spec.layer, spec.head, spec.parameters) for spec in specs] == [
            (1, 0, 0),
            (1, 1, 1),
            (2, 0, 2),
            (2, 1, 3),
        ]


def test_head_or_rank_that_the_model_lacks_is_refused(model, tokenizer, dataset):
    for change in ({"component": "head_key_output", "heads": "7"}, {"low_rank_dimension": 33}):
        with pytest.raises(TrainingError) as caught:
            Trainer(model, tokenizer, dataclasses.replace(OPTIONS, **change), dataset)
        assert caught.value.param in ("heads", "low_rank_dimension")
