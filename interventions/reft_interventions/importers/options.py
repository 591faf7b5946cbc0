"""What a checkpoint does not record and the user adds, and the one error that lists what is still missing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..activations import Activation
from ..errors import InterventionImportError
from ..positions import ShortPromptRule


@dataclass(frozen=True)
class ImportOptions:
    """Named options of an import; None = not given. docs/importing.md says which format needs which."""

    base_model: str | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    positions: str | tuple[int, ...] | None = None
    suffix_offset: int = 0
    short_prompt: ShortPromptRule | None = None
    formula: str | None = None
    act: Activation | None = None
    allow_non_orthonormal: bool = False
    layers: tuple[int, ...] | None = None
    component: str | None = None
    head: int | None = None
    scale: float | None = None
    concept: int | None = None
    max_activation: float | None = None
    is_hidden_states: bool = False
    name: str = ""
    description: str = ""
    license: str = ""
    prompt_template: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("scale", self.scale), ("max_activation", self.max_activation)):
            if value is not None and not math.isfinite(value):
                raise InterventionImportError(f"{option} must be a finite number", param=option)


@dataclass
class Missing:
    """Collects what has to be asked for, so that the user hears of everything at once."""

    entries: dict[str, str] = field(default_factory=dict)

    def add(self, option: str, why: str) -> None:
        """Note that `option` (`--positions`, for instance) is needed, and why."""
        self.entries.setdefault(option, why)

    def raise_if_any(self) -> None:
        """End the import if anything is missing.

        Raises:
            InterventionImportError: with every missing option.
        """
        if self.entries:
            lines = "; ".join(f"{option} ({why})" for option, why in self.entries.items())
            raise InterventionImportError(
                f"the checkpoint does not record everything; add: {lines}",
                param=next(iter(self.entries)).lstrip("-").replace("-", "_"),
            )
