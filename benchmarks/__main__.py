"""The benchmark suite: `make bench`, or `python -m benchmarks --only swap pool`.

Each part states its question, baseline and ceiling (`python -m benchmarks.<part> --help`), runs its rounds in turns,
and appends its figures to benchmarks/results/. Tables of everything come last. `python -m benchmarks.report` writes the
newest figures and their plots into README.md and docs/benchmarks.md.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from benchmarks import distinct, pool, prefix, swap, tables
from benchmarks.options import Options, make_options, make_parser
from benchmarks.peers.compare import compare
from benchmarks.peers.contenders import COMPARISONS
from benchmarks.peers.environments import MissingPeerError

Part = Callable[[Options], dict[str, Any]]
PARTS: Mapping[str, Part] = MappingProxyType(
    {
        **{peer: (lambda options, peer=peer: compare(peer, options)) for peer in COMPARISONS},
        "swap": swap.run,
        "pool": pool.run,
        "prefix": prefix.run,
        "distinct": distinct.run,
        **{
            f"distinct-{server}": (lambda options, server=server: distinct.run(options, server))
            for server in distinct.RUNNERS
            if server != "ours"
        },
    }
)
DEFAULT = ("hf", "peft", "swap", "pool", "prefix", "distinct")
"""What runs in our own environment, in about a quarter of an hour."""


def run_parts(names: list[str], options: Options, console: Console) -> dict[str, dict[str, Any]]:
    """The results by part; a part whose environment is missing is left out, and that is said."""
    results = {}
    for number, name in enumerate(names, 1):
        console.rule(f"[bold]{number} of {len(names)}: {name}", align="left")
        started = time.monotonic()
        try:
            results[name] = PARTS[name](options)
        except MissingPeerError as error:
            console.print(f"left out: {error}", style="yellow", markup=False)
            continue
        console.print(f"{name} took {time.monotonic() - started:.0f} s", style="dim")
    return results


def make_tables(results: Mapping[str, dict[str, Any]]) -> list[tables.Table]:
    """The tables of what was measured."""
    peers = [result for name, result in results.items() if name in COMPARISONS]
    curves = [result for name, result in results.items() if name.startswith("distinct")]
    made = [tables.peers(peers)] if peers else []
    made += [tables.distinct(curves)] if curves else []
    single = {"prefix": tables.prefix, "swap": tables.swap, "pool": tables.pool}
    return made + [table(results[name]) for name, table in single.items() if name in results]


def print_summary(results: Mapping[str, dict[str, Any]], options: Options, console: Console) -> None:
    """Machine, ceilings and tables."""
    console.rule("[bold]summary", align="left")
    machine = {name: value for name, value in options.machine.items() if name != "system"}
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    for name, result in results.items():
        if "ceilings" in result:
            console.print(f"ceiling during {name}: {result['ceilings']}", style="dim", highlight=False)
    for table in make_tables(results):
        drawn = RichTable(title=table.title, title_justify="left", title_style="bold")
        for index, column in enumerate(table.columns):
            drawn.add_column(column, justify="right" if index else "left")
        for row in table.rows:
            drawn.add_row(*row)
        console.print(drawn)
    if options.is_quick:
        console.print("Quick figures mean nothing: they show that everything runs.")
    elif options.results:
        console.print(f"Kept in {options.results}; python -m benchmarks.report writes them into the pages.")


def main(arguments: list[str] | None = None) -> None:
    """Run the parts, and print their tables."""
    parser = make_parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=DEFAULT, help=f"parts ({' '.join(DEFAULT)})")
    args = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers end with us
    options, console = make_options(args), Console()
    print_summary(run_parts(list(args.only), options, console), options, console)


if __name__ == "__main__":
    main()
