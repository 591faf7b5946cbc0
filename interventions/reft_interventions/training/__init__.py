"""Training of intervention sets; `reft-train` on the command line."""

from __future__ import annotations

from .base_model import load_model
from .data import Dataset, TokenizedExample, check_row, read_dataset, split_dataset
from .loss import Evaluation, evaluate
from .options import RECIPES, TrainingOptions
from .reporting import Reporter
from .run_manifest import SetDescription
from .trainer import Trainer, TrainingResult, train

__all__ = [
    "RECIPES",
    "Dataset",
    "Evaluation",
    "Reporter",
    "SetDescription",
    "TokenizedExample",
    "Trainer",
    "TrainingOptions",
    "TrainingResult",
    "check_row",
    "evaluate",
    "load_model",
    "read_dataset",
    "split_dataset",
    "train",
]
