"""What a request asks to train, as the trainer's options and the intervention's name."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from reft_client.types import FineTuningHyperparameters, FineTuningJobRequest, ReftMethod
from reft_interventions.errors import InterventionError, TrainingError
from reft_interventions.store import check_name
from reft_interventions.training import RECIPES, TrainingOptions
from reft_server.errors import InvalidRequestError, UnsupportedParameterError

from .settings import FineTuningSettings

_REFT_PATH = "method.reft.hyperparameters"
_SERVERS_OWN = {"save_every": "the server chooses it", "seed": "send it beside method"}
_DEFAULTS = TrainingOptions()


@dataclass(frozen=True)
class TrainingPlan:
    """What to train, once everything is checked.

    Args:
        name: the intervention's.
        method: what the answer says was asked for.
    """

    name: str
    options: TrainingOptions
    recipe: str | None
    method: dict[str, Any]


def plan_training(request: FineTuningJobRequest, job_id: str, settings: FineTuningSettings) -> TrainingPlan:
    """Translate a request.

    Raises:
        UnsupportedParameterError: a method other than `reft` and `supervised`.
        InvalidRequestError: a hyperparameter that is unknown, of the wrong type or out of range; `param` names it.
        InvalidInterventionNameError: the name breaks the rules.
    """
    method = request.method
    kind = method.type if method else "supervised"
    if kind not in ("supervised", "reft"):
        raise UnsupportedParameterError(f"The method {kind!r} is not served; use 'reft'", param="method.type")
    if method and any((kind == "reft" and method.supervised, kind == "supervised" and method.reft, method.model_extra)):
        raise InvalidRequestError(f"A method of type {kind!r} has no field but {kind!r}", param="method")
    reft = (method.reft if method else None) or ReftMethod()
    openai = method.supervised.hyperparameters if method and method.supervised else None
    if openai is not None and request.hyperparameters is not None:
        raise InvalidRequestError("Send method.supervised.hyperparameters alone", param="hyperparameters")
    openai = openai or request.hyperparameters
    chosen = _chosen(request, reft, openai) if kind == "reft" else _from_openai(openai)
    chosen = {"prefix_cache_mb": min(_DEFAULTS.prefix_cache_mb, settings.max_memory_bytes // 4 // 10**6)} | chosen
    chosen |= {"save_every": settings.checkpoint_steps}
    if request.seed is not None:
        chosen["seed"] = request.seed
    return TrainingPlan(
        name=_intervention_name(request, reft, job_id),
        options=_build(chosen),
        recipe=reft.recipe,
        method=method.model_dump(exclude_none=True) if method else {"type": "supervised"},
    )


def check_size(options: TrainingOptions, num_rows: int, num_layers: int, settings: FineTuningSettings) -> None:
    """What depends on the data and on the base model.

    Raises:
        InvalidRequestError: too many steps, or layers that the model lacks.
    """
    try:
        options.layer_numbers(num_layers)
    except TrainingError as error:
        raise _bad_option(error) from error
    num_steps = options.epochs * math.ceil(num_rows / (options.batch_size * options.gradient_accumulation))
    if num_steps > settings.max_steps:
        raise InvalidRequestError(
            f"{options.epochs} epochs of {num_rows} rows are {num_steps} steps; the limit is {settings.max_steps}",
            param="n_epochs",
        )


def _chosen(
    request: FineTuningJobRequest, reft: ReftMethod, openai: FineTuningHyperparameters | None
) -> dict[str, Any]:
    if openai is not None:
        raise InvalidRequestError("Send method.reft.hyperparameters alone", param="hyperparameters")
    if reft.recipe is not None and reft.recipe not in RECIPES:
        raise InvalidRequestError(
            f"The recipe {reft.recipe!r} is unknown; use one of {', '.join(RECIPES)}", param="method.reft.recipe"
        )
    hints = get_type_hints(TrainingOptions)
    known = [field.name for field in fields(TrainingOptions) if field.name not in _SERVERS_OWN]
    chosen: dict[str, Any] = dict(RECIPES[reft.recipe]) if reft.recipe else {}
    for name, value in reft.hyperparameters.items():
        path = f"{_REFT_PATH}.{name}"
        if name in _SERVERS_OWN:
            raise UnsupportedParameterError(f"{name} can't be chosen here: {_SERVERS_OWN[name]}", param=path)
        if name not in known:
            raise InvalidRequestError(f"{name} is unknown; use {', '.join(known)}", param=path)
        chosen[name] = _typed(path, _layers_text(value) if name == "layers" else value, hints[name])
    has_split = bool(chosen.get("eval_fraction"))
    if request.validation_file is not None and has_split:
        raise InvalidRequestError(
            "Send validation_file or eval_fraction, not both", param=f"{_REFT_PATH}.eval_fraction"
        )
    if chosen.get("patience") is not None and request.validation_file is None and not has_split:
        raise InvalidRequestError("patience needs a validation_file or eval_fraction", param=f"{_REFT_PATH}.patience")
    return chosen


def _from_openai(asked: FineTuningHyperparameters | None) -> dict[str, Any]:
    if asked is None:
        return {}
    chosen: dict[str, Any] = {"epochs": asked.n_epochs, "batch_size": asked.batch_size}
    if isinstance(asked.learning_rate_multiplier, float | int):
        chosen["lr"] = _DEFAULTS.lr * asked.learning_rate_multiplier
    return {name: value for name, value in chosen.items() if isinstance(value, float | int)}


def _layers_text(value: Any) -> Any:
    """Layers may come as a number or a list of numbers too."""
    numbers = value if isinstance(value, list) else [value]
    is_numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers)
    return ";".join(map(str, numbers)) if is_numbers else value


def _typed(path: str, value: Any, hint: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        raise InvalidRequestError(f"{path}: {error.errors()[0]['msg']}", param=path) from error


def _build(chosen: dict[str, Any]) -> TrainingOptions:
    try:
        return TrainingOptions(**chosen)
    except (TrainingError, InterventionError) as error:
        raise _bad_option(error) from error


def _bad_option(error: TrainingError | InterventionError) -> InvalidRequestError:
    return InvalidRequestError(error.message, param=f"{_REFT_PATH}.{error.param}" if error.param else _REFT_PATH)


def _intervention_name(request: FineTuningJobRequest, reft: ReftMethod, job_id: str) -> str:
    """The name asked for, or one of the job's own: `ft-<suffix>-<the id's last 8 digits>`."""
    if reft.name is not None:
        if request.suffix is not None:
            raise InvalidRequestError("Send suffix or method.reft.name, not both", param="suffix")
        return check_name(reft.name)
    parts = ("ft", request.suffix, job_id[-8:])
    try:
        return check_name("-".join(part for part in parts if part))
    except InterventionError as error:
        raise InvalidRequestError(f"suffix can't be part of a name: {error.message}", param="suffix") from error
