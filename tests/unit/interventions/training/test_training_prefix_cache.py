"""Keys and values kept over the run: the same losses, prompts of every length, only where it is exact."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from reft_interventions import InterventionPositions
from reft_interventions.training import Trainer, TrainingOptions, read_dataset, train
from reft_interventions.training.batches import collate
from reft_interventions.training.loss import answer_logits
from reft_interventions.training.prefix_cache import PrefixCache, is_worthwhile, num_unedited

OPTIONS = TrainingOptions(layers="0;2", positions="l2", epochs=3, lr=0.03, batch_size=5, max_length=64)


@pytest.fixture
def dataset(tokenizer, write_rows, pairs):
    longer = [{**row, "prompt": row["prompt"] + "lorem ipsum" * (index % 3)} for index, row in enumerate(pairs)]
    longer[3]["completion"] = "a longer answer"
    return read_dataset(write_rows(longer), tokenizer, 64)


@pytest.mark.parametrize(
    ("spec", "length", "expected"),
    [("l3", 10, 7), ("l3", 3, 1), ("l3", 1, 0), ("f1+l1", 10, 0), ("prompt", 5, 0), ((4, 6), 10, 4), ((4, 6), 3, 2)],
)
def test_num_unedited_counts_tokens_before_the_first_edit(spec, length, expected):
    assert num_unedited([InterventionPositions(spec)], length) == expected


@pytest.mark.parametrize("architecture_name", ["llama", "qwen3", "gpt2", "gpt_neox", "phi3"])
def test_logits_behind_cached_prefixes_equal_the_whole_forward(tiny_model, tokenizer, dataset, architecture_name):
    model = tiny_model(architecture_name)
    trainer = Trainer(model, tokenizer, dataclasses.replace(OPTIONS, start="random"), dataset)
    rules = [spec.intervention_positions for spec in trainer.trainable.specs]
    lengths = [num_unedited(rules, len(example.prompt_ids)) for example in dataset.examples]
    cache = PrefixCache(model, dataset.examples, lengths, 0, 5)
    with torch.no_grad():
        for indices in ([0, 1], list(range(12)), [11, 3, 0]):
            whole, whole_labels = answer_logits(
                model, collate([dataset.examples[i] for i in indices], 0), trainer.trainable.site_edits()
            )
            rest, labels = answer_logits(model, cache.batch(indices), trainer.trainable.site_edits())
            torch.testing.assert_close(rest[labels != -100], whole[whole_labels != -100], atol=1e-4, rtol=1e-4)


def test_training_with_and_without_the_cache_gives_the_same_losses(tiny_model, tokenizer, dataset):
    model = tiny_model("llama")
    cached = train(model, tokenizer, OPTIONS, dataset)
    plain = train(model, tokenizer, dataclasses.replace(OPTIONS, prefix_cache_mb=0), dataset)
    assert cached.progress.losses == pytest.approx(plain.progress.losses, rel=1e-3)


def test_cache_is_used_only_where_it_is_exact_fits_and_saves(tiny_model, dataset):
    examples = dataset.examples
    lengths = [len(example.prompt_ids) - 1 for example in examples]
    assert is_worthwhile(tiny_model("llama"), lengths, examples, 10**9)
    assert not is_worthwhile(tiny_model("llama"), lengths, examples, 10**3)
    assert not is_worthwhile(tiny_model("llama"), [1] * len(examples), examples, 10**9)
    for sliding in ("mistral", "gemma2", "gemma3_text"):
        assert not is_worthwhile(tiny_model(sliding), lengths, examples, 10**9)
