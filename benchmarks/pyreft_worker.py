"""pyreft's side of `benchmarks.training`: runs in an environment of its own, and imports no package of ours.

    python -m benchmarks.pyreft_worker MODEL_FOLDER POSITIONS BATCH_SIZE

Reads JSON lines `{"rows": [[prompt ids, answer ids], …]}`; trains one epoch on each and writes
`{"seconds", "num_steps", "peak_bytes", "first_loss", "last_loss"}`. Model and locations are pyreft's own; the loop
around them is a bare one, without the bookkeeping of transformers' Trainer.
"""

from __future__ import annotations

import importlib.machinery
import json
import logging
import random
import sys
import time
import types
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.resident import peak_bytes, reset_peak


def stub(name: str) -> None:
    """Stand in for a plotting or data package that pyreft imports and this job does not use."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__path__ = []
    module.__getattr__ = lambda attribute: type(attribute, (), {})  # type: ignore[method-assign]
    sys.modules[name] = module


for package in ("matplotlib", "matplotlib.pyplot", "seaborn", "datasets"):
    stub(package)
ANSWERS, sys.stdout = sys.stdout, sys.stderr  # pyreft and pyvene print, on import and later
import pyreft  # noqa: E402 - after its stand-ins


def examples(rows: list[list[list[int]]], positions: str, num_interventions: int) -> list[dict[str, Any]]:
    made = []
    for prompt, answer in rows:
        locations = pyreft.get_intervention_locations(
            last_position=len(prompt),
            positions=positions,
            num_interventions=num_interventions,
            share_weights=True,
            pad_mode="last",
        )
        made.append(
            {
                "input_ids": torch.tensor(prompt + answer),
                "labels": torch.tensor([-100] * len(prompt) + answer),
                "attention_mask": torch.ones(len(prompt) + len(answer), dtype=torch.int64),
                "intervention_locations": locations,
            }
        )
    return made


def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """Padded on the right to the longest row, as pyreft's collator does."""

    def pad(name: str, value: int) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence([row[name] for row in batch], batch_first=True, padding_value=value)

    return {
        "input_ids": pad("input_ids", 0),
        "labels": pad("labels", -100),
        "attention_mask": pad("attention_mask", 0),
        "intervention_locations": torch.tensor([row["intervention_locations"] for row in batch]),
    }


def train_epoch(model: Any, optimizer: Any, rows: list[dict[str, Any]], batch_size: int) -> list[float]:
    random.Random(0).shuffle(rows)
    losses = []
    for start in range(0, len(rows), batch_size):
        inputs = collate(rows[start : start + batch_size])
        _, outputs = model(
            {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]},
            unit_locations={"sources->base": (None, inputs["intervention_locations"].permute(1, 0, 2).tolist())},
            labels=inputs["labels"],
        )
        outputs.loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(outputs.loss.item())
    return losses


def main() -> None:
    folder, positions, batch_size = sys.argv[1], sys.argv[2], int(sys.argv[3])
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers, width = base.config.num_hidden_layers, base.config.hidden_size
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": 4,
            "intervention": pyreft.LoreftIntervention(embed_dim=width, low_rank_dimension=4, dtype=torch.float32),
        }
        for layer in range(layers)
    ]
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations))
    model.train()
    optimizer = torch.optim.AdamW(model.get_trainable_parameters(), lr=9e-4, weight_decay=0.0)
    for line in sys.stdin:
        rows = examples(json.loads(line)["rows"], positions, layers)
        reset_peak()
        started = time.perf_counter()
        losses = train_epoch(model, optimizer, rows, batch_size)
        seconds = time.perf_counter() - started
        result = {"seconds": seconds, "num_steps": len(losses), "peak_bytes": peak_bytes()}
        ANSWERS.write(json.dumps(result | {"first_loss": losses[0], "last_loss": losses[-1]}) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
