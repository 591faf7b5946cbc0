"""What `model` means: the base model under one of its names, or an intervention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from pydantic import ValidationError

from reft_client.types import InterventionRef
from reft_server.errors import InvalidRequestError, ModelNotFoundError

SHORT_BASE_NAME = "base"


@dataclass(frozen=True)
class ModelNames:
    """The base model's names.

    Args:
        base_id: its full id, such as `HuggingFaceTB/SmolLM2-135M-Instruct`, which also answers to its last part.
        served_name: the name that `/v1/models` shows; None = `base_id`.
    """

    base_id: str
    served_name: str | None = None

    @property
    def base(self) -> str:
        """The name that `/v1/models` shows."""
        return self.served_name or self.base_id

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every name of the base model."""
        return self.base, self.base_id, PurePosixPath(self.base_id).name, SHORT_BASE_NAME

    def intervention_of(self, model: str | None) -> InterventionRef | None:
        """The intervention that `model` names (`name`, `name@version`, `<base model>:name`); None = the base model.

        Raises:
            ModelNotFoundError: it can't be a name.
        """
        if model is None or model in self.aliases:
            return None
        prefix = next((alias for alias in self.aliases if model.startswith(f"{alias}:")), None)
        name = model if prefix is None else model[len(prefix) + 1 :]
        try:
            return InterventionRef(name=name)
        except ValidationError as error:
            raise model_not_found(model) from error

    def merge(self, model: str | None, refs: tuple[InterventionRef, ...]) -> tuple[InterventionRef, ...]:
        """The interventions to apply, from the fields `model` and `intervention`.

        Raises:
            ModelNotFoundError: `model` can't be a name.
            InvalidRequestError: the two fields name different interventions.
        """
        named = self.intervention_of(model)
        if named is None:
            return refs
        if not refs:
            return (named,)
        is_same = len(refs) == 1 and refs[0].name == named.name and named.version in (None, refs[0].version)
        if not is_same:
            raise InvalidRequestError(
                f"model names the intervention {named} and intervention names {', '.join(map(str, refs))}: "
                f"send one of them, or model={self.base!r}",
                param="intervention",
            )
        return refs


def model_not_found(model: str) -> ModelNotFoundError:
    """The error for a `model` that is neither the base model nor an intervention."""
    return ModelNotFoundError(f"The model {model!r} does not exist: GET /v1/models lists what does", param="model")
