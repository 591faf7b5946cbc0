"""The model that the benchmarks run on: the default one, or another of the Llama shape in a folder."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from reft_interventions import BaseModelRef
from reft_server.base_model import default_model_path

_FIRST_ORDINARY_TOKEN = 100
"""Lower ids of the default model are special tokens and bytes."""


@dataclass(frozen=True)
class BenchmarkModel:
    """What a benchmark needs to know of a model: where it is, its shape, and how many weights a token meets."""

    path: Path
    name: str
    hidden_size: int
    num_layers: int
    num_block_weights: int
    num_head_weights: int
    vocab_size: int
    query_size: int
    value_size: int

    @property
    def edited_layers(self) -> tuple[int, ...]:
        """The layers that the random sets edit: five at equal distances, or fewer where there are fewer."""
        return tuple(sorted({self.num_layers * index // 6 for index in range(1, 6)}))

    @property
    def token_ids(self) -> range:
        """What random prompts draw from."""
        return range(min(_FIRST_ORDINARY_TOKEN, self.vocab_size // 2), self.vocab_size)

    @property
    def base_ref(self) -> BaseModelRef:
        return BaseModelRef(id=self.name, hidden_size=self.hidden_size, num_layers=self.num_layers)


def load(folder: Path | None = None) -> BenchmarkModel:
    """Read a model's shape; None = the default model, which has been fetched.

    Raises:
        SystemExit: it is not there.
    """
    path = folder or default_model_path()
    if not (path / "config.json").is_file():
        raise SystemExit(f"no model in {path}: run `make model`, or name a folder with --model")
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    num_weights = sum(_num_weights(file) for file in sorted(path.glob("*.safetensors")))
    num_head_weights = config["vocab_size"] * config["hidden_size"]
    num_embeddings = 1 if config["tie_word_embeddings"] else 2
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return BenchmarkModel(
        path=path,
        name="smollm2-135m-instruct" if folder is None else path.name,
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_block_weights=num_weights - num_embeddings * num_head_weights,
        num_head_weights=num_head_weights,
        vocab_size=config["vocab_size"],
        query_size=head_size * config["num_attention_heads"],
        value_size=head_size * config["num_key_value_heads"],
    )


def _num_weights(file: Path) -> int:
    with safe_open(file, framework="pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
