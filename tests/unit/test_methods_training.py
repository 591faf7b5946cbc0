"""The comparison's virtual tokens begin as the training rows' first tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from benchmarks.methods.peft_training import train_peft
from reft_interventions.training import TrainingOptions
from reft_interventions.training.data import Dataset, TokenizedExample

NUM_VIRTUAL_TOKENS = 6
INPUT_IDS = torch.tensor([[5, 17, 99, 3]])


@pytest.mark.parametrize("config_class", ["PrefixTuningConfig", "PromptTuningConfig"])
@pytest.mark.filterwarnings("ignore")  # PEFT's, about its own future
def test_virtual_tokens_started_from_rows_act_as_those_tokens(config_class: str, tiny_model: Any) -> None:
    base = tiny_model("llama")
    rows = (TokenizedExample((7, 9, 11), (80,), line=1), TokenizedExample((60, 61, 62), (90,), line=2))
    options = TrainingOptions(epochs=1, lr=1e-12, batch_size=2)
    adapted = train_peft(
        copy.deepcopy(base),
        config_class,
        {"num_virtual_tokens": NUM_VIRTUAL_TOKENS},
        options,
        Dataset(rows, 0, ""),
        pad_token_id=0,
        starts_from_rows=True,
    )
    with torch.no_grad():
        got = adapted.model(input_ids=INPUT_IDS, attention_mask=torch.ones_like(INPUT_IDS)).logits[0, -4:]
        in_front = torch.tensor([[7, 9, 11, 80, 60, 61]])
        expected = base(torch.cat((in_front, INPUT_IDS), dim=1)).logits[0, -4:]
    assert (got - expected).abs().max() < 1e-4
    assert (got - base(INPUT_IDS).logits[0]).abs().max() > 1e-2
