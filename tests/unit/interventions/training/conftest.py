"""A tokenizer of single characters and small data files, for the trainer's tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """One token a character; vocabulary below 128; `<|end|>` ends a sequence; has a chat template."""
    characters = [chr(code) for code in range(32, 127)] + ["\n"]
    vocabulary = {token: index for index, token in enumerate(["<|pad|>", "<|start|>", "<|end|>", *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    built = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        bos_token="<|start|>",
        eos_token="<|end|>",
        unk_token="?",
        clean_up_tokenization_spaces=False,
    )
    built.chat_template = CHAT_TEMPLATE
    return built


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """`write_rows(rows, name="data.jsonl")` writes JSON lines and returns the file."""

    def write(rows: list[dict[str, Any]], name: str = "data.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def pairs() -> list[dict[str, Any]]:
    """Twelve rows with prompts of 1 to 9 tokens: the answer tells whether the prompt begins with `a` or `b`."""
    prompts = ["a", "b", "ac", "bc", "acd", "bcd", "acde", "bcde", "abcdef", "bcdefg", "axyzabcde", "bxyzabcde"]
    return [{"prompt": prompt, "completion": "one" if prompt[0] == "a" else "two"} for prompt in prompts]
