"""What to train and how: the options, their limits, and the paper's recipes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from ..activations import Activation
from ..components import check_component, is_head
from ..errors import TrainingError
from ..formulas import FORMULAS
from ..positions import InterventionPositions, ShortPromptRule
from .subspaces import parse_subspaces

INTERCHANGE = "dii"
"""The formula whose source is a row of another prompt."""
Start = Literal["base", "random"]
Precision = Literal["float32", "bfloat16"]
_INDICES = re.compile(r"-?\d{1,6}(,-?\d{1,6})*")
_TWO_ENDED = re.compile(r"f[1-9]\d*\+l[1-9]\d*")


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides the trained tensors, besides the data and the base model.

    Args:
        formula: a name in `FORMULAS`.
        layers: `all`, or layer numbers divided by `;` or `,`.
        heads: numbers of the heads to edit, with a `head_*` component; each has weights of its own.
        low_rank_dimension: ignored by the formulas without one.
        positions: `fN`, `lN`, `fN+lM`, `prompt`, `all`, or indices like `3,-1`, negative ones from the prompt's end.
        is_tied: one set of weights for prefix and suffix; False needs positions `fN+lM`.
        is_tied_across_layers: one set of weights for all layers.
        subspaces: rank dimensions set aside by name, `task_a=0,1;task_b=2,3`; a row with a `subspace` trains its own.
        start: `base`: the first step sees the base model's own output (linear `act` only); `random`: pyreft's start.
        epochs: passes over the data.
        batch_size: rows in one forward pass.
        gradient_accumulation: forward passes in one optimizer step; the step equals that of one large batch.
        warmup_ratio: share of the steps in which the learning rate rises linearly; then it falls linearly to 0.
        weight_decay: AdamW's, never applied to `rotate_layer`.
        dropout: share of the delta's numbers that a training step sets to 0; the others grow to keep the mean.
        precision: of the frozen base model's matrix products while training; parameters, edits, residual stream and
            evaluation stay float32.
        prefix_cache_mb: MB for keys and values of the tokens before the first edited one, kept over the whole run
            where that saves at least a third of the tokens; 0 = never.
        max_length: tokens of prompt and answer together; longer rows are left out and counted.
        eval_every: epochs between two looks at the held-out rows; 0 = only before and after.
        patience: stop after this many epochs without a lower held-out loss and keep the best; None = never.
        save_every: optimizer steps between checkpoints; 0 = none.

    Raises:
        TrainingError: an option is out of its range; `param` names it.
        UnsupportedComponentError: there is no such component.
    """

    formula: str = "loreft"
    layers: str = "all"
    component: str = "block_output"
    heads: str = ""
    low_rank_dimension: int = 4
    act: Activation = "linear"
    positions: str = "f3+l3"
    suffix_offset: int = 0
    short_prompt: ShortPromptRule = "paper"
    is_tied: bool = True
    is_tied_across_layers: bool = False
    subspaces: str = ""
    start: Start = "base"
    epochs: int = 6
    lr: float = 9e-4
    batch_size: int = 16
    gradient_accumulation: int = 1
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    dropout: float = 0.0
    max_grad_norm: float = 1.0
    precision: Precision = "float32"
    prefix_cache_mb: int = 2048
    max_length: int = 512
    eval_fraction: float = 0.0
    eval_every: int = 1
    patience: int | None = None
    save_every: int = 0
    seed: int = 42

    def __post_init__(self) -> None:
        formula = FORMULAS.get(self.formula)
        if formula is None:
            raise TrainingError(
                f"formula {self.formula!r} is unknown; use one of {', '.join(FORMULAS)}", param="formula"
            )
        check_component(self.component)
        if bool(self.heads.strip()) != is_head(self.component):
            raise TrainingError(
                f"component {self.component!r}: heads belong to a head_* component, which needs them", param="heads"
            )
        if self.act not in get_args(Activation) or (self.act != "linear" and not formula.has_act):
            raise TrainingError(f"formula {self.formula!r} can't use act {self.act!r}", param="act")
        _ = InterventionPositions(self.position_spec, "both", self.suffix_offset, self.short_prompt)
        if self.positions == "generated":
            raise TrainingError("'generated' can't be trained: answers need the first edited token", param="positions")
        if self.formula == INTERCHANGE and self.positions == "all":
            raise TrainingError("'all' can't be interchanged: a source has no answer; use prompt", param="positions")
        if self.subspaces and not formula.has_subspaces:
            raise TrainingError(f"formula {self.formula!r} has no rank dimensions to set aside", param="subspaces")
        _ = parse_subspaces(self.subspaces, self.low_rank_dimension)
        if not self.is_tied and not _TWO_ENDED.fullmatch(self.positions):
            raise TrainingError("untied weights need positions of the form fN+lM", param="positions")
        if self.short_prompt not in get_args(ShortPromptRule):
            raise TrainingError("short_prompt must be paper or floor", param="short_prompt")
        if self.start not in get_args(Start):
            raise TrainingError("start must be base or random", param="start")
        if self.precision not in get_args(Precision):
            raise TrainingError("precision must be float32 or bfloat16", param="precision")
        self._check_numbers()

    def _check_numbers(self) -> None:
        at_least_one = ("low_rank_dimension", "epochs", "batch_size", "gradient_accumulation", "max_length")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise TrainingError(f"{name} must be 1 or more", param=name)
        for name in ("weight_decay", "save_every", "seed", "prefix_cache_mb", "eval_every"):
            if getattr(self, name) < 0:
                raise TrainingError(f"{name} must be 0 or more", param=name)
        for name in ("lr", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name} must be above 0", param=name)
        if not 0 <= self.warmup_ratio <= 1:
            raise TrainingError("warmup_ratio must lie between 0 and 1", param="warmup_ratio")
        if not 0 <= self.eval_fraction <= 0.9:
            raise TrainingError("eval_fraction must lie between 0 and 0.9", param="eval_fraction")
        if not 0 <= self.dropout < 1:
            raise TrainingError("dropout must be 0 or more and below 1", param="dropout")
        if self.patience is not None and self.patience < 1:
            raise TrainingError("patience must be 1 or more", param="patience")
        if self.patience is not None and self.eval_every != 1:
            raise TrainingError("early stopping looks at the held-out rows after each epoch", param="eval_every")

    @property
    def rank(self) -> int:
        """The low_rank_dimension that the manifest records: 0 for the formulas without one."""
        return self.low_rank_dimension if FORMULAS[self.formula].has_low_rank else 0

    @property
    def position_spec(self) -> str | tuple[int, ...]:
        """The positions as a manifest has them."""
        if _INDICES.fullmatch(self.positions):
            return tuple(int(index) for index in self.positions.split(","))
        return self.positions

    def layer_numbers(self, num_layers: int) -> tuple[int, ...]:
        """The layers to edit, ascending.

        Raises:
            TrainingError: not numbers, none, twice the same, or outside the model.
        """
        return _numbers(self.layers, num_layers, "layer")

    def head_numbers(self, num_heads: int) -> tuple[int | None, ...]:
        """The heads to edit, ascending; one None for a component without heads.

        Raises:
            TrainingError: not numbers, twice the same, or outside the model.
        """
        return _numbers(self.heads, num_heads, "head") if self.heads.strip() else (None,)

    def as_dict(self) -> dict[str, Any]:
        """The options as plain JSON values."""
        return asdict(self)


def _numbers(text: str, count: int, kind: str) -> tuple[int, ...]:
    """Read `all`, or numbers below `count` divided by `;` or `,`; `kind` is `layer` or `head`."""
    param = f"{kind}s"
    if text.strip() == "all":
        return tuple(range(count))
    parts = [part.strip() for part in re.split(r"[;,]", text) if part.strip()]
    if not parts or not all(part.isdecimal() for part in parts):
        raise TrainingError(f"{param} {text!r}: write 'all', or numbers like '3;9;18'", param=param)
    numbers = sorted(int(part) for part in parts)
    if len(set(numbers)) != len(numbers):
        raise TrainingError(f"{param} {text!r} names a {kind} twice", param=param)
    if numbers[-1] >= count:
        raise TrainingError(f"{kind} {numbers[-1]} is outside the model's {count} {param}", param=param)
    return tuple(numbers)


_SHARED = {"formula": "loreft", "warmup_ratio": 0.1, "weight_decay": 0.0}
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    # Source: Wu et al. 2024, arXiv:2404.03592, appendix D; pyreft's README for `demo`. Batches of 32 and 128 are
    # reached by accumulation, so that they fit a small machine. `demo` edits the layer that --layers names.
    {
        "commonsense": MappingProxyType(
            _SHARED
            | {"layers": "all", "low_rank_dimension": 8, "positions": "f7+l7", "is_tied": True}
            | {"epochs": 6, "lr": 9e-4, "batch_size": 16, "gradient_accumulation": 2}
        ),
        "math": MappingProxyType(
            _SHARED
            | {"layers": "all", "low_rank_dimension": 8, "positions": "f7+l7", "is_tied": True}
            | {"epochs": 12, "lr": 9e-4, "batch_size": 16, "gradient_accumulation": 2}
        ),
        "instruct": MappingProxyType(
            _SHARED
            | {"layers": "3;9;18;24", "low_rank_dimension": 4, "positions": "f5+l5", "is_tied": False}
            | {"epochs": 9, "lr": 9e-4, "batch_size": 16, "gradient_accumulation": 8}
        ),
        "demo": MappingProxyType(
            _SHARED
            | {"layers": "15", "low_rank_dimension": 4, "positions": "l1", "is_tied": True}
            | {"epochs": 100, "lr": 4e-3, "batch_size": 10, "gradient_accumulation": 1}
        ),
    }
)
"""The paper's settings by task: fields of `TrainingOptions`."""
