"""pyreft's own `generate`, in an environment of its own: `… -m benchmarks.peers.pyreft_worker MODEL_FOLDER LAYERS NUM`.

pyreft has one intervention per batch and one batch at a time, so a mixed job is as many batches as it has sets.
NUM random LoReFT sets of rank 4 at LAYERS (`5;10`), positions f3+l3, stay in memory; they are named `set-0` and so on.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from importlib.metadata import version
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.peers.worker_loop import serve_jobs
from benchmarks.pyreft_stubs import pyreft

POSITIONS, RANK = "f3+l3", 4


def make_set(base: Any, layers: list[int]) -> Any:
    """A set in memory; pyreft attaches its hooks in each call."""
    width = base.config.hidden_size
    representations = [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": RANK,
            "intervention": pyreft.LoreftIntervention(embed_dim=width, low_rank_dimension=RANK, dtype=torch.float32),
        }
        for layer in layers
    ]
    model = pyreft.get_reft_model(base, pyreft.ReftConfig(representations=representations))
    model.eval()  # it returns None
    return model


def generate(model: Any, prompts: list[list[int]], num_new_tokens: int, num_interventions: int) -> None:
    """One batch under one set; prompts have one length."""
    locations = pyreft.get_intervention_locations(
        last_position=len(prompts[0]),
        positions=POSITIONS,
        num_interventions=num_interventions,
        share_weights=True,
        pad_mode="last",
    )
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        model.generate(
            {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
            unit_locations={"sources->base": (None, [[one] * len(prompts) for one in locations])},
            intervene_on_prompt=True,
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )


def main() -> None:
    folder, layers, num_sets = sys.argv[1], [int(layer) for layer in sys.argv[2].split(";")], int(sys.argv[3])
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with contextlib.redirect_stdout(sys.stderr):  # pyvene prints
        sets = {f"set-{index}": make_set(base, layers) for index in range(num_sets)}

    def run(prompts: list[list[int]], num_new_tokens: int, adapters: list[str | None]) -> None:
        for name in dict.fromkeys(adapters):
            rows = [prompt for prompt, adapter in zip(prompts, adapters, strict=True) if adapter == name]
            generate(sets[name or "set-0"], rows, num_new_tokens, len(layers))

    serve_jobs(f"{version('pyreft')} on pyvene {version('pyvene')}", run)


if __name__ == "__main__":
    main()
