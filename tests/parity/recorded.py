"""Checkpoints of other libraries with the logits that those computed, packed in archives under tests/fixtures."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from reft_interventions import InterventionSet, attach
from reft_interventions.importers import ImportedSet, ImportOptions, import_checkpoint

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Recorded:
    """An unpacked archive: `model/`, a folder per checkpoint, and the logits of every prompt token of a batch."""

    folder: Path

    @classmethod
    def unpack(cls, archive: Path, folder: Path) -> Recorded:
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        return cls(folder)

    @cached_property
    def model(self) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.folder / "model", dtype=torch.float32).eval()

    @cached_property
    def logits(self) -> dict[str, Tensor]:
        return load_file(self.folder / "expected.safetensors")

    @cached_property
    def prompts(self) -> list[Tensor]:
        return list(self.logits["input_ids"].split(self.logits["lengths"].tolist()))

    def import_checkpoint(self, name: str, **options: object) -> ImportedSet:
        return import_checkpoint(self.folder / name, ImportOptions(base_model="tiny", num_layers=3, **options))

    def batched(self, prompts: list[Tensor], one: InterventionSet | None) -> Tensor:
        """The logits of every prompt token of one left-padded batch."""
        width = max(len(prompt) for prompt in prompts)
        input_ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros_like(input_ids)
        for index, prompt in enumerate(prompts):
            input_ids[index, width - len(prompt) :], mask[index, width - len(prompt) :] = prompt, 1
        position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad(), attach(self.model, [] if one is None else one):
            logits = self.model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids).logits
        return torch.cat([logits[index, width - len(prompt) :] for index, prompt in enumerate(prompts)])

    def alone(self, prompts: list[Tensor], one: InterventionSet) -> Tensor:
        """The logits of every prompt token, one prompt at a time."""
        return torch.cat([self.batched([prompt], one) for prompt in prompts])


def check_same(got: Tensor, expected: Tensor, unedited: Tensor) -> None:
    """Equal within the tolerance, and far from the base model's own logits."""
    assert (got - expected).abs().max() <= TOLERANCE
    assert (unedited - expected).abs().max() > 100 * TOLERANCE, "the edit must be felt"
