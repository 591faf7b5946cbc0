"""Training of intervention sets; `reft-train` on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy_exports import lazy_exports

if TYPE_CHECKING:
    from .base_model import load_model
    from .data import Dataset, TokenizedExample, check_row, read_dataset, split_dataset
    from .loss import Evaluation, evaluate
    from .options import RECIPES, TrainingOptions
    from .reporting import Reporter
    from .run_manifest import SetDescription
    from .trainer import Trainer, TrainingResult, train
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "base_model": ("load_model",),
            "data": ("Dataset", "TokenizedExample", "check_row", "read_dataset", "split_dataset"),
            "loss": ("Evaluation", "evaluate"),
            "options": ("RECIPES", "TrainingOptions"),
            "reporting": ("Reporter",),
            "run_manifest": ("SetDescription",),
            "trainer": ("Trainer", "TrainingResult", "train"),
        },
    )

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
