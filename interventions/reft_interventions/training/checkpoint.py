"""Checkpoints: one safetensors file with everything that an exact continuation needs, and nothing executable."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_safetensors
from torch import Tensor

from ..errors import TrainingError
from .options import TrainingOptions
from .trainable import TrainableSet

_KEY = "reft_training"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def checkpoint_path(output: Path) -> Path:
    """Where the checkpoints of a run with this output lie."""
    return output.with_name(f"{output.stem}.checkpoint.safetensors")


@dataclass
class Progress:
    """Where a run is. The data order is a function of seed and epoch, so no random state needs keeping.

    `step` optimizer steps are done in all, `step_in_epoch` of them in `epoch`; losses are per answer token.
    """

    step: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    losses: list[float] = field(default_factory=list)
    eval_losses: list[float] = field(default_factory=list)
    best_eval_loss: float | None = None
    best_epoch: int = 0


def run_key(options: TrainingOptions, data_sha256: str, eval_sha256: str | None, fingerprint: str) -> str:
    """Identifies a run: a checkpoint continues only under the options, data and base model that it was made with."""
    relevant = {name: value for name, value in options.as_dict().items() if name != "save_every"}
    text = json.dumps([relevant, data_sha256, eval_sha256, fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def save_checkpoint(
    path: Path,
    key: str,
    progress: Progress,
    trainable: TrainableSet,
    optimizer: torch.optim.AdamW,
    best: dict[str, Tensor] | None,
) -> None:
    """Write the checkpoint atomically: a crash leaves the previous one.

    Raises:
        TrainingError: the file can't be written.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in trainable.named_parameters().items():
        tensors[f"parameter/{name}"] = parameter.detach().cpu().contiguous()
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = optimizer.state[parameter][moment].detach().cpu().contiguous()
    tensors.update({f"best/{name}": value.contiguous() for name, value in (best or {}).items()})
    data = save_safetensors(tensors, {_KEY: json.dumps({"key": key, "progress": asdict(progress)})})
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise TrainingError(f"the checkpoint {path} can't be written: {error.strerror}", param="output") from error
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(
    path: Path, key: str, trainable: TrainableSet, optimizer: torch.optim.AdamW
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Put parameters and optimizer state back.

    Returns:
        Where the run was, and the best parameters so far when early stopping keeps them.

    Raises:
        TrainingError: there is no such file, it is damaged, or it belongs to another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise TrainingError(f"the checkpoint {path} can't be read: {error}", param="resume") from error
    if not isinstance(metadata, dict) or metadata.get("key") != key:
        raise TrainingError(
            f"the checkpoint {path} belongs to a run with other options, data or base model; repeat that run's "
            "options, or remove the file and start over",
            param="resume",
        )
    named = trainable.named_parameters()
    trainable.load({name: tensors[f"parameter/{name}"] for name in named})
    for name, parameter in named.items():
        state = {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS}
        optimizer.state[parameter] = {
            moment: value if moment == "step" else value.to(parameter.device) for moment, value in state.items()
        }
    best = {name.removeprefix("best/"): value for name, value in tensors.items() if name.startswith("best/")}
    return Progress(**metadata["progress"]), best or None
