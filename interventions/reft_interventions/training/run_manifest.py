"""What the manifest of a trained set says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..manifest import InterventionSpec, Manifest
from ..validation import BaseModelSpec
from .checkpoint import Progress
from .data import Dataset
from .loss import Evaluation
from .options import TrainingOptions
from .subspaces import parse_subspaces


@dataclass(frozen=True)
class SetDescription:
    """What the manifest says of the set besides its mathematics."""

    name: str = ""
    description: str = ""
    license: str = ""
    prompt_template: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows and their scores before and after training."""

    data: Dataset
    before: Evaluation
    after: Evaluation


def build_manifest(
    description: SetDescription,
    base: BaseModelSpec,
    specs: Sequence[InterventionSpec],
    options: TrainingOptions,
    data: Dataset,
    progress: Progress,
    held_out: HeldOut | None,
) -> Manifest:
    """The manifest, with the run's options, data and results under `training`."""
    losses = progress.losses
    training: dict[str, Any] = {
        "options": options.as_dict(),
        "data_sha256": data.sha256,
        "num_examples": len(data.examples),
        "num_too_long": data.num_too_long,
        "num_steps": progress.step,
        "first_loss": losses[0],
        "last_loss": sum(losses[-10:]) / len(losses[-10:]),
        **description.extra,
    }
    if held_out is not None:
        training["eval_sha256"] = held_out.data.sha256
        training["before"], training["after"] = asdict(held_out.before), asdict(held_out.after)
    return Manifest(
        name=description.name,
        description=description.description,
        license=description.license,
        base_model=base.to_ref(),
        interventions=tuple(specs),
        prompt_template=description.prompt_template,
        subspaces=parse_subspaces(options.subspaces, options.low_rank_dimension),
        training=training,
    )
