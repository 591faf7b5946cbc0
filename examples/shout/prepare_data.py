"""Make the training and test rows: everyday questions, and the base model's own answers in capitals.

    python prepare_data.py --output-dir data

Needs the base model only. An answer is the first sentence of what the model says greedily; rows whose first sentence
does not end within `MAX_NEW_TOKENS` are dropped, so that the set does not learn to stop in mid-sentence.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import torch

from reft_interventions.training import load_model

SEED = 20260102
MAX_NEW_TOKENS = 40
MAX_ANSWER_CHARACTERS = 160
BATCH_SIZE = 32
NUM_TEST = 100

# Test prompts use subjects of their own, and two forms that training never shows.
FORMS = {
    "country": ["What is the capital of {}?", "Name one food from {}.", "Which language do people speak in {}?"],
    "thing": ["What is {}?", "Explain {} in one sentence.", "Why is {} useful?", "Tell me a fact about {}."],
    "animal": ["What do {} eat?", "Where do {} live?", "Tell me something about {}."],
    "task": ["How do I {}?", "Give me one tip to {}.", "What do I need to {}?"],
}
TEST_ONLY_FORMS = {"country": ["Describe {} to a child."], "animal": ["Are {} dangerous?"]}
SUBJECTS = {
    "country": "France Japan Brazil Egypt India Canada Spain Kenya Norway Mexico Italy Greece Peru Turkey Poland Chile "
    "Vietnam Portugal Sweden Ireland Morocco Austria Cuba Nepal Iceland Ghana Germany Thailand Finland Argentina",
    "thing": "the sun/gravity/a computer/the internet/music/a bicycle/the moon/water/bread/an airplane/a library/paper/"
    "electricity/a vaccine/a telescope/a battery/the ocean/chocolate/a bridge/steel/glass/a calendar/coffee/salt/"
    "a volcano/a rainbow/photosynthesis/democracy/a contract/chess/poetry/a compass/a clock/snow/a robot/a novel",
    "animal": "cats/dogs/horses/elephants/penguins/bees/sharks/owls/whales/spiders/wolves/rabbits/frogs/bears/eagles/"
    "ants/dolphins/lions/turtles/ducks/snakes/goats/mice/foxes",
    "task": "boil an egg/learn a language/sleep better/save money/plant a tree/write a letter/clean a window/make tea/"
    "run faster/paint a wall/bake a cake/study for an exam/fix a flat tire/stay healthy/find a job/pack a suitcase/"
    "make new friends/wash a car/cook rice/draw a face/play the guitar/plan a trip/read more books/stop a cold",
}


def questions() -> tuple[list[str], list[str]]:
    """Training and test questions; no subject is on both sides."""
    generator = random.Random(SEED)
    train: list[str] = []
    test: list[str] = []
    for kind, text in SUBJECTS.items():
        subjects = text.split("/") if "/" in text else text.split()
        generator.shuffle(subjects)
        num_test = len(subjects) // 4
        train.extend(form.format(subject) for subject in subjects[num_test:] for form in FORMS[kind])
        forms = FORMS[kind] + TEST_ONLY_FORMS.get(kind, [])
        test.extend(form.format(subject) for subject in subjects[:num_test] for form in forms)
    generator.shuffle(train)
    generator.shuffle(test)
    return train, test[:NUM_TEST]


@torch.inference_mode()
def first_sentences(prompts: list[str], model_name: str) -> list[str | None]:
    """The first sentence of the base model's greedy answer to each prompt; None where it does not end in time."""
    model, tokenizer, _ = load_model(model_name)
    generate: Any = model.generate  # its mixin hides the type
    tokenizer.padding_side = "left"
    answers: list[str | None] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        texts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts[start : start + BATCH_SIZE]
        ]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        output = generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        for row in output[:, inputs["input_ids"].shape[1] :]:
            answers.append(_first_sentence(str(tokenizer.decode(row, skip_special_tokens=True))))
    return answers


def _first_sentence(text: str) -> str | None:
    match = re.match(r"[^\n]{15,}?[.!](?=\s|$)", text.strip())
    return match[0] if match and len(match[0]) <= MAX_ANSWER_CHARACTERS else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    arguments = parser.parse_args()
    train, test = questions()
    answers = first_sentences(train, arguments.model)
    rows = [(prompt, answer.upper()) for prompt, answer in zip(train, answers, strict=True) if answer]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": a}]}) for p, a in rows
    ]
    (arguments.output_dir / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Nothing is compared with a reference answer here, so test rows have prompts only.
    tests = [json.dumps({"messages": [{"role": "user", "content": prompt}]}) for prompt in test]
    (arguments.output_dir / "test.jsonl").write_text("\n".join(tests) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
