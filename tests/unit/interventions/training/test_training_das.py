"""Interchange: each edited row takes its own source's row, and the learned subspace beats a random one."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reft_interventions import attach, load
from reft_interventions.errors import TrainingError
from reft_interventions.positions import intersect
from reft_interventions.training import Trainer, TrainingOptions, read_dataset, train
from reft_interventions.training.batches import collate
from reft_interventions.training.cli import main
from reft_interventions.training.loss import answer_logits

OPTIONS = TrainingOptions(
    formula="dii", layers="1;2", low_rank_dimension=4, positions="f1+l2", epochs=6, lr=0.05, batch_size=5, max_length=64
)


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def triples(pairs):
    """Prompts of 4 to 12 tokens with sources of other lengths: the answer is the source's class."""
    rows = []
    for index, pair in enumerate(pairs):
        source = pairs[(index * 5 + 3) % len(pairs)]
        rows.append(
            {"prompt": pair["prompt"] + "xyz", "source": source["prompt"] + "xyz", "completion": source["completion"]}
        )
    return rows


@pytest.fixture
def dataset(tokenizer, write_rows, triples):
    return read_dataset(write_rows(triples), tokenizer, 64)


def test_source_row_is_read_and_its_answer_has_no_end_token(tokenizer, write_rows):
    rows = [
        {"base": "ab", "source": "cd", "completion": "e"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
         "source": [{"role": "user", "content": "c"}]},
    ]  # fmt: skip
    first, second = read_dataset(write_rows(rows), tokenizer, 100).examples
    assert tokenizer.decode(first.source_ids) == "cd"
    assert tokenizer.decode(first.answer_ids) == "e"
    assert tokenizer.decode(second.source_ids).endswith("c<|end|>\n<|start|>assistant\n")
    assert tokenizer.decode(second.answer_ids) == "b"


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["f1+l2", "l2", "f2", "-4,-2"])
def test_batch_of_unequal_lengths_equals_each_row_alone_with_its_rows_put_in_by_hand(
    model, tokenizer, dataset, side, positions
):
    trainer = Trainer(model, tokenizer, dataclasses.replace(OPTIONS, positions=positions, epochs=1), dataset)
    trainer.run()
    batch = collate(dataset.examples, 0, side)
    with torch.no_grad():
        logits, labels = answer_logits(model, batch, trainer.trainable.site_edits(batch))
        for row, example in enumerate(dataset.examples):
            alone = _interchange_alone(model, trainer, example)
            torch.testing.assert_close(logits[row][labels[row] != -100], alone, atol=1e-4, rtol=1e-4)


def _interchange_alone(model, trainer, example):
    """The answer's logits with plain hooks that swap the subspace of each row, one by one."""
    source = model(torch.tensor([example.source_ids]), output_hidden_states=True).hidden_states
    handles = []
    for spec, group in zip(trainer.trainable.specs, trainer.trainable.groups, strict=True):
        rotation = group["rotate_layer"]
        rule = spec.intervention_positions
        targets, sources = (
            intersect(rule.intervals(len(ids)), 0, len(ids)) for ids in (example.prompt_ids, example.source_ids)
        )

        def swap(_, __, output, layer=spec.layer, rotation=rotation, targets=targets, sources=sources):
            changed = output.clone()
            for target, origin in zip(targets, sources, strict=True):
                difference = source[layer + 1][0, origin] - output[0, target]
                changed[0, target] = output[0, target] + rotation @ (rotation.T @ difference)
            return changed

        handles.append(model.model.layers[spec.layer].register_forward_hook(swap))
    try:
        logits = model(torch.tensor([[*example.prompt_ids, *example.answer_ids[:-1]]])).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    return logits[-len(example.answer_ids) :]


def test_learned_subspace_beats_the_random_one_that_it_began_with(model, tokenizer, dataset):
    result = train(model, tokenizer, dataclasses.replace(OPTIONS, epochs=20), dataset, dataset, model_id="tiny")
    random = Trainer(model, tokenizer, OPTIONS, dataset).trainable.named_parameters()
    assert result.after.loss < 0.9 * result.before.loss
    assert result.orthonormality_error < 1e-5
    assert set(result.intervention_set.parameters[0]) == {"rotate_layer"}
    assert not torch.equal(random["sites.0.rotate_layer"], result.intervention_set.parameters[0]["rotate_layer"])


def test_source_rows_don_t_change_what_batches_or_caches_are_used(model, tokenizer, dataset):
    options = dataclasses.replace(OPTIONS, positions="l2", batch_size=6)
    losses = train(model, tokenizer, options, dataset, dataset).progress.losses
    plain = dataclasses.replace(options, prefix_cache_mb=0, batch_size=3, gradient_accumulation=2)
    assert train(model, tokenizer, plain, dataset, dataset).progress.losses == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "abcd", "completion": "e"}, "line 1: --method das needs a source"),
        ({"prompt": "abcd", "source": "a", "completion": "e"}, "line 1: positions f1[+]l2 edit 3 .* and 1 "),
        ({"prompt": "abcd", "source": 3, "completion": "e"}, "line 1: the source must be a prompt"),
        ({"prompt": "abcd", "source": "", "completion": "e"}, "line 1: the source is empty"),
    ],
)
def test_rows_that_can_t_be_interchanged_are_refused_by_line(model, tokenizer, write_rows, row, reason):
    with pytest.raises(TrainingError, match=reason):
        Trainer(model, tokenizer, OPTIONS, read_dataset(write_rows([row]), tokenizer, 64))


def test_source_without_the_method_is_refused(model, tokenizer, dataset):
    with pytest.raises(TrainingError, match="a source needs --method das"):
        Trainer(model, tokenizer, dataclasses.replace(OPTIONS, formula="loreft"), dataset)


def test_cli_trains_by_das_and_writes_a_set_without_a_source(
    tiny_model, tokenizer, write_rows, triples, tmp_path, capsys
):
    tiny_model("llama").save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    output = tmp_path / "das.safetensors"
    arguments = ["--model", str(tmp_path / "tiny"), "--data", str(write_rows(triples)), "--output", str(output)]
    assert main([*arguments, "--method", "das", "--layers", "1", "--positions", "l2", "--epochs", "1"]) == 0
    (spec,) = load(output).manifest.interventions
    assert spec.formula == "dii"
    assert main([*arguments, "--method", "das", "--formula", "loreft"]) == 1
    assert "leave out --formula" in capsys.readouterr().err
    with pytest.raises(Exception, match="source"), attach(tiny_model("llama"), load(output)):
        tiny_model("llama")(torch.tensor([[5, 6, 7]]))
