"""Search over layers, rank and positions: a small grid, most of it stopped early by successive halving."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import TrainingError
from .data import Dataset
from .loss import Evaluation
from .options import TrainingOptions
from .reporting import SilentReporter
from .run_manifest import SetDescription
from .trainer import Trainer, TrainingResult

if TYPE_CHECKING:
    import optuna

_REDUCTION_FACTOR = 2


@dataclass(frozen=True)
class SearchSpace:
    """The values to choose from, in the spelling of `TrainingOptions`."""

    layers: tuple[str, ...]
    ranks: tuple[int, ...]
    positions: tuple[str, ...]

    @property
    def num_combinations(self) -> int:
        return len(self.layers) * len(self.ranks) * len(self.positions)

    @classmethod
    def default(cls, num_layers: int) -> SearchSpace:
        """One layer at a quarter, half and three quarters of the depth, these together, or all; two ranks."""
        quarters = sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)})
        single = [str(layer) for layer in quarters]
        together = ";".join(single)
        layers = tuple(dict.fromkeys([*single, together, "all"]))
        return cls(layers, (2, 8), ("l1", "l3", "f3+l3"))


@dataclass(frozen=True)
class Trial:
    """One combination: its held-out loss after each epoch, and its exact match at the end (None when stopped early)."""

    number: int
    layers: str
    low_rank_dimension: int
    positions: str
    eval_losses: tuple[float, ...]
    exact_match: float | None
    num_parameters: int
    seconds: float

    @property
    def is_pruned(self) -> bool:
        return self.exact_match is None


@dataclass(frozen=True)
class SearchResult:
    """Every trial in its order, and the run of the best: the lowest held-out loss at the end."""

    trials: tuple[Trial, ...]
    best: int
    options: TrainingOptions
    training: TrainingResult

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"best": self.best, "trials": [asdict(t) | {"is_pruned": t.is_pruned} for t in self.trials]}


def search(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: TrainingOptions,
    data: Dataset,
    evaluation: Dataset,
    space: SearchSpace,
    num_trials: int,
    *,
    model_id: str = "",
    description: SetDescription | None = None,
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> SearchResult:
    """Train combinations of `space`, drawn without repeats, and keep the one with the lowest held-out loss.

    After each power of two of epochs only the better half of the trials that came so far goes on (asynchronous
    successive halving). The same arguments give the same trials.

    Args:
        model: the base model.
        tokenizer: its tokenizer.
        options: of every trial, besides the searched ones; `seed` also orders the trials.
        data: rows to train on.
        evaluation: held-out rows; they choose, so measure the result on yet others.
        space: what to choose from.
        num_trials: at most so many combinations.
        model_id: the base model's name in the manifest.
        description: for the manifest.
        on_trial: called after each trial.

    Raises:
        TrainingError: optuna is missing, or a combination does not fit the model.

    Source: Li et al. 2020, arXiv:1810.05934.
    """
    library = _import_optuna()
    options = replace(options, eval_every=1, save_every=0)
    run = _Search(model, tokenizer, options, data, evaluation, model_id, description, on_trial)
    grid: dict[str, Any] = {
        "layers": list(space.layers),
        "low_rank_dimension": list(space.ranks),
        "positions": list(space.positions),
    }
    study = library.create_study(
        sampler=library.samplers.GridSampler(grid, seed=options.seed),
        pruner=library.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_REDUCTION_FACTOR),
    )

    def objective(trial: optuna.Trial) -> float:
        chosen = {name: trial.suggest_categorical(name, values) for name, values in grid.items()}
        loss = run.train(replace(options, **chosen), trial)
        if loss is None:
            raise library.TrialPruned
        return loss

    study.optimize(objective, n_trials=min(num_trials, space.num_combinations))
    if run.best is None:
        raise TrainingError("no trial of the search came to its end", param="search")
    return SearchResult(tuple(run.trials), run.best_number, run.best_options, run.best)


class _StoppedEarlyError(Exception):
    """Ends a trial that is not among the better ones."""


class _TrialReporter(SilentReporter):
    """Tells the pruner each epoch's held-out loss."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.num_parameters = 0
        self.eval_losses: list[float] = []

    def started(self, *counts: object) -> None:
        self.num_parameters = int(str(counts[2]))

    def evaluated(self, *values: object) -> None:
        label, evaluation = values
        if label in ("before", "after") or not isinstance(evaluation, Evaluation):
            return
        self.eval_losses.append(evaluation.loss)
        self._trial.report(evaluation.loss, len(self.eval_losses))
        if self._trial.should_prune():
            raise _StoppedEarlyError


@dataclass
class _Search:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: TrainingOptions
    data: Dataset
    evaluation: Dataset
    model_id: str
    description: SetDescription | None
    on_trial: Callable[[Trial], None]
    trials: list[Trial] = field(default_factory=list)
    best: TrainingResult | None = None
    best_number: int = 0
    best_loss: float = float("inf")
    best_options: TrainingOptions = field(default_factory=TrainingOptions)

    def train(self, options: TrainingOptions, trial: optuna.Trial) -> float | None:
        """The held-out loss at the end; None when the trial was stopped early."""
        reporter, started_s = _TrialReporter(trial), time.monotonic()
        trainer = Trainer(self.model, self.tokenizer, options, self.data, self.evaluation, model_id=self.model_id)
        after: Evaluation | None = None
        try:
            result = trainer.run(reporter, self.description)
            after = result.after
        except _StoppedEarlyError:
            pass
        done = Trial(
            number=trial.number,
            layers=options.layers,
            low_rank_dimension=options.low_rank_dimension,
            positions=options.positions,
            eval_losses=tuple(reporter.eval_losses),
            exact_match=after.exact_match if after else None,
            num_parameters=reporter.num_parameters,
            seconds=round(time.monotonic() - started_s, 1),
        )
        self.trials.append(done)
        self.on_trial(done)
        if after is None:
            return None
        if after.loss < self.best_loss:
            self.best, self.best_number, self.best_loss, self.best_options = result, trial.number, after.loss, options
        return after.loss


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise TrainingError(
            "--search needs optuna; install it with `pip install 'reft-serve[train]'`", param="search"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
