"""Make the pairs of prompts from which the interval's lower bound is learned as a subspace.

    python prepare_data.py --output-dir data

The task is Hanna et al. 2023, arXiv:2305.00586: "The war lasted from the year 1732 to the year 17" must go on with a
decade that is not before 3. The completion of a row is what the base model itself writes after its prompt with the
source's decade put in: the answer if the decade were the only thing that the source changes. Pairs in which the base
model writes an impossible decade for either prompt, or the same one for both, are left out.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from reft_interventions.training import load_model
from reft_interventions.training.data import tokenize_prompt

SEED = 20261121
NOUNS = (
    "war", "siege", "dynasty", "voyage", "dispute", "reign", "expedition", "drought", "rebellion", "alliance",
    "famine", "construction", "pilgrimage", "conflict", "journey", "campaign", "settlement", "trial",
)  # fmt: skip
NUM_TEST_NOUNS = 5
PROMPTS_PER_NOUN = 64
NUM_TRAIN, NUM_TEST = 640, 200
TEMPLATE = "The {noun} lasted from the year {century}{decade}{year} to the year {century}"
Prompt = tuple[str, int, int, int]
"""Noun, century, decade's digit, year's digit."""


def render(prompt: Prompt) -> str:
    noun, century, decade, year = prompt
    return TEMPLATE.format(noun=noun, century=century, decade=decade, year=year)


@torch.inference_mode()
def next_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[Prompt]) -> dict[Prompt, str]:
    """The token that the base model writes first after each prompt; prompts of one length share a batch."""
    by_length: dict[int, list[tuple[Prompt, tuple[int, ...]]]] = {}
    for prompt in prompts:
        token_ids = tokenize_prompt(tokenizer, render(prompt))
        by_length.setdefault(len(token_ids), []).append((prompt, token_ids))
    written: dict[Prompt, str] = {}
    for rows in by_length.values():
        for start in range(0, len(rows), 64):
            batch = rows[start : start + 64]
            logits = model(torch.tensor([token_ids for _, token_ids in batch]), logits_to_keep=1).logits[:, -1]
            for (prompt, _), token in zip(batch, logits.argmax(dim=1).tolist(), strict=True):
                written[prompt] = str(tokenizer.decode([token]))
    return written


def pairs(prompts: list[Prompt], num_pairs: int, rng: random.Random) -> list[tuple[Prompt, Prompt, Prompt]]:
    """(base, source, base with the source's decade), decades different."""
    chosen = []
    while len(chosen) < num_pairs:
        base, source = rng.sample(prompts, 2)
        if base[2] != source[2]:
            chosen.append((base, source, (base[0], base[1], source[2], base[3])))
    return chosen


def behaves(prompt: Prompt, written: str) -> bool:
    """The decade written is a digit, and not before the prompt's own."""
    return written.isdecimal() and int(written) >= prompt[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    model, tokenizer, _ = load_model(arguments.model)
    model.eval()
    rng = random.Random(SEED)
    nouns = list(NOUNS)
    rng.shuffle(nouns)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    counts = {}
    for name, own, num_rows in (
        ("test", nouns[:NUM_TEST_NOUNS], NUM_TEST),
        ("train", nouns[NUM_TEST_NOUNS:], NUM_TRAIN),
    ):
        # A decade of 9 leaves one answer, and a year before 2 makes the same decade likely: neither tells much.
        prompts = [
            (noun, rng.randint(11, 18), rng.randint(1, 8), rng.randint(2, 9))
            for noun in own
            for _ in range(PROMPTS_PER_NOUN)
        ]
        triples = pairs(prompts, 3 * num_rows, rng)
        needed = sorted({prompt for triple in triples for prompt in triple})
        written = next_tokens(model, tokenizer, needed)
        good = [t for t in triples if all(behaves(p, written[p]) for p in t) and written[t[0]] != written[t[2]]]
        counts[name] = {
            "num_prompts": len(needed),
            "num_prompts_that_behave": sum(behaves(prompt, written[prompt]) for prompt in needed),
            "num_pairs": len(triples),
            "num_pairs_kept": len(good),
        }
        rows = [
            {"base": render(base), "source": render(source), "completion": written[wanted]}
            for base, source, wanted in good[:num_rows]
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (arguments.output_dir / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    (arguments.output_dir / "counts.json").write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
