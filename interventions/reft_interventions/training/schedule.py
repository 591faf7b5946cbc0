"""The optimizer and its learning rate: AdamW, linear warm-up, linear decay."""

from __future__ import annotations

import math

import torch

from .options import TrainingOptions
from .trainable import ROTATION, TrainableSet


def build_optimizer(trainable: TrainableSet, options: TrainingOptions) -> torch.optim.AdamW:
    """AdamW over the set's parameters; weight decay never touches R, which it would shrink off its manifold."""
    named = trainable.named_parameters()
    rotations = [value for name, value in named.items() if name.endswith(f".{ROTATION}")]
    others = [value for name, value in named.items() if not name.endswith(f".{ROTATION}")]
    groups = [
        {"params": rotations, "weight_decay": 0.0},
        {"params": others, "weight_decay": options.weight_decay},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=options.lr)


def learning_rate(step: int, num_steps: int, options: TrainingOptions) -> float:
    """The rate of optimizer step `step`, counted from 0: up to `lr` over the warm-up, then down towards 0."""
    num_warmup = math.ceil(num_steps * options.warmup_ratio)
    if step < num_warmup:
        return options.lr * (step + 1) / num_warmup
    return options.lr * (num_steps - step) / max(num_steps - num_warmup, 1)
