"""What a search shows: a line for each trial, and a table at the end."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from .events import EventLog
from .search import SearchResult, Trial


class SearchProgress:
    """Prints trials as they end, and writes each as an event `trial`."""

    def __init__(self, console: Console, events: EventLog) -> None:
        self._console, self._events = console, events

    def finished(self, trial: Trial) -> None:
        """A trial ended, or was stopped early."""
        loss = trial.eval_losses[-1]
        end = (
            f"stopped after epoch {len(trial.eval_losses)}"
            if trial.is_pruned
            else f"exact match {trial.exact_match:.1%}"
        )
        self._console.print(
            f"trial {trial.number}: layers {trial.layers}, rank {trial.low_rank_dimension}, positions "
            f"{trial.positions}: held-out loss {loss:.4f}, {end}, {trial.seconds:.1f} s",
            markup=False,
            soft_wrap=True,
        )
        self._events.write(
            "trial",
            number=trial.number,
            layers=trial.layers,
            low_rank_dimension=trial.low_rank_dimension,
            positions=trial.positions,
            loss=loss,
            exact_match=trial.exact_match,
        )

    def show(self, result: SearchResult) -> None:
        """The table, best first; trials that were stopped early come last."""
        table = Table("trial", "layers", "rank", "positions", "epochs", "held-out loss", "exact match", "parameters")
        for trial in sorted(result.trials, key=lambda trial: (trial.is_pruned, trial.eval_losses[-1])):
            table.add_row(
                f"{trial.number}{' (best)' if trial.number == result.best else ''}",
                trial.layers,
                str(trial.low_rank_dimension),
                trial.positions,
                str(len(trial.eval_losses)),
                f"{trial.eval_losses[-1]:.4f}",
                "" if trial.exact_match is None else f"{trial.exact_match:.1%}",
                f"{trial.num_parameters:,}",
            )
        self._console.print(table)
