"""Random LoRA and DoRA folders for tiny models, and PEFT's own run of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import PreTrainedModel

TARGETS = ("q_proj", "v_proj", "down_proj")


def save_adapter(
    model: PreTrainedModel, folder: Path, *, use_dora: bool = False, target_modules: Sequence[str] = TARGETS
) -> Path:
    """Write an adapter for `model`, strong enough to change its tokens; returns `folder`."""
    config = peft.LoraConfig(r=4, lora_alpha=8, use_dora=use_dora, target_modules=list(target_modules))
    with _quiet():
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def load_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """A copy of `model` with the adapter beside its weights, not merged."""
    with _quiet():
        return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """PEFT warns of its own future, and of tied heads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
