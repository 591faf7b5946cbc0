"""Measure a trained example on its held-out rows: the base model, the saved set, and the majority class.

    python measure.py labels word-category/word-category.safetensors --data test.jsonl --output results.json
    python measure.py interchange greater-than/greater-than.safetensors --data test.jsonl --output results.json
    python measure.py capitals shout/shout.safetensors --data test.jsonl --output results.json

The set is read back from its file and runs through `attach`, as anyone's would.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_interventions import (
    Applied,
    InterventionSet,
    attach,
    base_model_spec,
    capture_source,
    load,
    validate_for_base,
)
from reft_interventions.formulas.base import initial_rotation
from reft_interventions.training import load_model
from reft_interventions.training.data import tokenize_prompt

BATCH_SIZE = 16
Prompt = str | list[dict[str, str]]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def batches(token_ids: Sequence[tuple[int, ...]], pad_token_id: int) -> Iterator[tuple[list[int], torch.Tensor, Any]]:
    """Rows of similar length, padded on the left: their indices, `input_ids` and `attention_mask`."""
    order = sorted(range(len(token_ids)), key=lambda index: len(token_ids[index]))
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        width = max(len(token_ids[index]) for index in indices)
        input_ids = torch.full((len(indices), width), pad_token_id)
        attention_mask = torch.zeros(len(indices), width, dtype=torch.int64)
        for row, index in enumerate(indices):
            input_ids[row, width - len(token_ids[index]) :] = torch.tensor(token_ids[index])
            attention_mask[row, width - len(token_ids[index]) :] = 1
        yield indices, input_ids, attention_mask


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    intervention_set: InterventionSet | None,
    max_new_tokens: int,
) -> tuple[list[str], torch.Tensor]:
    """Greedy answers, and the logits of each answer's first token `[num_prompts, vocab_size]`."""
    run: Any = model.generate  # its mixin hides the type
    token_ids = [tokenize_prompt(tokenizer, prompt) for prompt in prompts]
    answers = [""] * len(prompts)
    logits = torch.zeros(len(prompts), model.config.vocab_size)
    for indices, input_ids, attention_mask in batches(token_ids, int(tokenizer.pad_token_id)):
        context: AbstractContextManager[None] = attach(model, intervention_set) if intervention_set else nullcontext()
        with context:
            output = run(
                input_ids=input_ids,
                attention_mask=attention_mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new_tokens = output.sequences[:, input_ids.shape[1] :]
        for row, index in enumerate(indices):
            answers[index] = str(tokenizer.decode(new_tokens[row], skip_special_tokens=True))
            logits[index] = output.logits[0][row].float()
    return answers, logits


def measure_labels(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], trained: InterventionSet
) -> dict[str, Any]:
    """Accuracy and macro-F1: by the likeliest label's first token, and by what greedy decoding writes."""
    wanted = [row["completion"].strip() for row in rows]
    labels = sorted(set(wanted))
    first_tokens = [tokenizer(f" {label}", add_special_tokens=False)["input_ids"][0] for label in labels]
    if len(set(first_tokens)) != len(labels):
        raise ValueError("two labels begin with the same token: they can't be told apart by it")
    majority, count = Counter(wanted).most_common(1)[0]
    results: dict[str, Any] = {
        "num_held_out": len(rows),
        "labels": labels,
        "majority": {
            "label": majority,
            "accuracy": count / len(rows),
            "macro_f1": macro_f1([majority] * len(rows), wanted),
        },
    }
    for name, intervention_set in (("base", None), ("ours", trained)):
        answers, logits = generate(model, tokenizer, [row["prompt"] for row in rows], intervention_set, 4)
        chosen = logits[:, first_tokens].log_softmax(dim=1)  # [num_prompts, num_labels]
        likeliest = [labels[index] for index in chosen.argmax(dim=1).tolist()]
        # A model that prefers one label whatever the prompt may still rank the prompts well.
        centered = [labels[index] for index in (chosen - chosen.mean(dim=0)).argmax(dim=1).tolist()]
        written = [answer.strip() for answer in answers]
        results[name] = {
            "by_label_likelihood": scores(likeliest, wanted),
            "by_centered_likelihood": scores(centered, wanted),
            "by_generation": scores(written, wanted),
        }
    return results


def scores(predicted: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    accuracy = sum(p == w for p, w in zip(predicted, wanted, strict=True)) / len(wanted)
    return {"accuracy": accuracy, "macro_f1": macro_f1(predicted, wanted)}


def macro_f1(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """The unweighted mean of each label's F1."""
    values = []
    for label in sorted(set(wanted)):
        hits = sum(p == w == label for p, w in zip(predicted, wanted, strict=True))
        total = sum(p == label for p in predicted) + sum(w == label for w in wanted)
        values.append(2 * hits / total)
    return sum(values) / len(values)


def measure_capitals(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], trained: InterventionSet
) -> dict[str, Any]:
    """Share of capital letters among all letters, and share of answers with more than 95% of them."""
    results: dict[str, Any] = {"num_held_out": len(rows)}
    for name, intervention_set in (("base", None), ("ours", trained)):
        answers, _ = generate(model, tokenizer, [row["messages"] for row in rows], intervention_set, 60)
        shares = [capital_share(answer) for answer in answers]
        letters = [sum(c.isalpha() for c in answer) for answer in answers]
        results[name] = {
            "capital_letters": sum(s * n for s, n in zip(shares, letters, strict=True)) / sum(letters),
            "answers_above_95_percent": sum(share > 0.95 for share in shares) / len(shares),
            "mean_letters": sum(letters) / len(letters),
            "distinct_answers": len(set(answers)) / len(answers),
            "samples": [
                {"prompt": row["messages"][-1]["content"], "answer": answer}
                for row, answer in list(zip(rows, answers, strict=True))[:8]
            ],
        }
    return results


def capital_share(text: str) -> float:
    letters = [character for character in text if character.isalpha()]
    return sum(character.isupper() for character in letters) / len(letters) if letters else 0.0


def measure_interchange(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[dict[str, Any]], trained: InterventionSet
) -> dict[str, Any]:
    """Interchange accuracy: the share of pairs after which the model writes the counterfactual answer first.

    Beside the learned subspace: five random ones of the same rank, the whole row, and no interchange at all.
    """
    (spec,) = trained.manifest.interventions
    hidden_size = trained.manifest.base_model.hidden_size
    random_sets = [
        with_rotation(
            trained, initial_rotation(hidden_size, spec.low_rank_dimension, torch.Generator().manual_seed(seed))
        )
        for seed in range(5)
    ]
    sets = {"learned": [trained], "random": random_sets, "whole_row": [with_rotation(trained, torch.eye(hidden_size))]}
    hits: dict[str, list[int]] = {name: [0] * len(members) for name, members in sets.items()}
    num_unchanged = 0
    for row in rows:
        (wanted,) = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        prompt, source = tokenize_prompt(tokenizer, row["base"]), tokenize_prompt(tokenizer, row["source"])
        source_rows = capture_source(model, trained, source)
        num_unchanged += next_token(model, prompt) == wanted
        for name, members in sets.items():
            for index, member in enumerate(members):
                with attach(model, [Applied(member, source_rows=source_rows)]):
                    hits[name][index] += next_token(model, prompt) == wanted
    accuracies = {name: [count / len(rows) for count in counts] for name, counts in hits.items()}
    return {
        "num_held_out": len(rows),
        "no_interchange": num_unchanged / len(rows),
        "random": {"mean": sum(accuracies["random"]) / 5, "max": max(accuracies["random"])},
        "whole_row": accuracies["whole_row"][0],
        "learned": accuracies["learned"][0],
    }


def with_rotation(trained: InterventionSet, rotation: torch.Tensor) -> InterventionSet:
    """The set with another subspace."""
    (spec,) = trained.manifest.interventions
    other = spec.model_copy(update={"low_rank_dimension": rotation.shape[1]})
    manifest = trained.manifest.model_copy(update={"interventions": (other,)})
    return InterventionSet.create(manifest, [{"rotate_layer": rotation}])


@torch.inference_mode()
def next_token(model: PreTrainedModel, prompt: Sequence[int]) -> int:
    return int(model(torch.tensor([list(prompt)]), logits_to_keep=1).logits[0, -1].argmax())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("labels", "capitals", "interchange"))
    parser.add_argument("set", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    model, tokenizer, model_id = load_model(arguments.model)
    model.eval()
    trained = load(arguments.set)
    validate_for_base(trained, base_model_spec(model, model_id))
    kinds = {"labels": measure_labels, "capitals": measure_capitals, "interchange": measure_interchange}
    measure = kinds[arguments.kind]
    results = {
        "model": model_id,
        "content_hash": trained.content_hash,
        "file_bytes": arguments.set.stat().st_size,
        "num_parameters": trained.num_parameters,
        **measure(model, tokenizer, read_rows(arguments.data), trained),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    arguments.output.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
