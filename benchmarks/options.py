"""What every benchmark takes on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.figures import write_result
from benchmarks.machine import RESULTS, busy_cores, describe, machine_lock
from benchmarks.model import BenchmarkModel, load

MOST_BUSY_CORES = 0.2


@dataclass(frozen=True)
class Options:
    """Which model, how much of the job, and where the figures go.

    Args:
        is_quick: a minute's worth of the suite, to see that it works; its figures mean nothing and are not kept.
        rounds: measured rounds; None = the benchmark's own number.
        locks: files that are locked in order, shared to prepare and exclusive to measure.
        results: the folder of the result files; None = keep nothing.
    """

    model: BenchmarkModel
    is_quick: bool = False
    rounds: int | None = None
    locks: tuple[Path, ...] = ()
    results: Path | None = None
    machine: dict[str, object] = field(default_factory=describe)
    """Of the start: the checkout may move on while a benchmark runs."""

    busy_cores: list[float] = field(default_factory=list)
    """What others used of the machine whenever a measurement began."""

    @property
    def server_flags(self) -> tuple[str, ...]:
        """Flags that make our server serve this model."""
        return ("--model", str(self.model.path))

    def num_rounds(self, default: int) -> int:
        return self.rounds or (1 if self.is_quick else default)

    @contextmanager
    def hold_machine(self, *, is_exclusive: bool) -> Iterator[None]:
        """Have the machine alone, or beside others that do not measure."""
        with ExitStack() as stack:
            for path in self.locks:
                stack.enter_context(machine_lock(path, is_exclusive=is_exclusive))
            yield

    def check_quiet(self) -> None:
        """Record what other processes use of the machine while ours are idle, and warn where it is much."""
        self.busy_cores.append(busy_cores(0.05 if self.is_quick else 1.0))
        if self.busy_cores[-1] > MOST_BUSY_CORES:
            print(f"warning: other processes use {self.busy_cores[-1]} cores; these figures mean little", flush=True)

    def keep(self, name: str, job: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
        """Append a result to its file, with the machine and the job; the result."""
        job = {"model": self.model.name, "dtype": "float32", **job}
        machine = {**self.machine, "busy_cores_before": max(self.busy_cores, default=0.0)}
        self.busy_cores.clear()
        result = {"benchmark": name, "machine": machine, "job": job, **figures}
        write_result(name, result, self.results)
        return result


def make_parser(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model of the Llama shape (the default model)")
    parser.add_argument("--rounds", type=int, help="measured rounds")
    parser.add_argument("--quick", action="store_true", help="a tiny job that only shows that everything runs")
    parser.add_argument("--results", type=Path, help="folder of the result files (benchmarks/results; --quick: none)")
    parser.add_argument(
        "--lock", type=Path, nargs="+", default=[], help="flock these files: shared to prepare, exclusive to measure"
    )
    return parser


def make_options(args: argparse.Namespace) -> Options:
    """The options of a command line that `make_parser` read."""
    results = args.results or (None if args.quick else RESULTS)
    return Options(load(args.model), args.quick, args.rounds, tuple(args.lock), results)


def parse_options(description: str | None) -> Options:
    """The options of a command line without any of the benchmark's own."""
    return make_options(make_parser(description).parse_args())
