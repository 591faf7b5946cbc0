"""What does the GPU path reach of what the GPU can do?

Question: is it exact, and which share of the bandwidth and product ceilings do its steps reach, base and edited?
Baseline: the base model on the same engine in the same run, and `generate` of transformers with a static cache; for
exactness the float32 reference on the CPU.
Ceiling: copy bandwidth and the bf16 matrix product rate, measured first.

    python -m benchmarks.gpu             on a GPU, under 8 minutes; appends to benchmarks/results/gpu.jsonl
    python -m benchmarks.gpu --dry-run   the same steps with a tiny model in Triton's interpreter: figures mean nothing

Exactness comes first: figures of a path that is not exact are kept apart, in `gpu-inexact.jsonl`, as are those of some
sections by themselves (`--only`), in `gpu-partial.jsonl`. A section that fails or takes too long is reported so, and
the others are taken all the same. What was found so far is kept after each section: the next run appends what is left
of one that was killed. Figures beside their targets come last.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks.gpu.plan import dry_plan, full_plan
from benchmarks.gpu.run import finish, is_exact, run
from benchmarks.gpu.targets import table
from benchmarks.machine import RESULTS


def main() -> None:
    """Parse arguments, run the sections, and print figures beside their targets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="a tiny model in Triton's interpreter; keeps nothing")
    parser.add_argument("--only", nargs="+", default=[], metavar="SECTION", help="these, besides the checks")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where gpu.jsonl is")
    options = parser.parse_args()
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        parser.error("no GPU here; --dry-run tries the script without one")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    folder = None if options.dry_run else options.results
    if folder is not None:
        finish(folder)
    result = run(dry_plan() if options.dry_run else full_plan(), folder, frozenset(options.only))
    shown = table(result)
    title = shown.title if is_exact(result) else "NOT EXACT: no figure here may be quoted"
    drawn = RichTable(*shown.columns, title=title)
    for row in shown.rows:
        drawn.add_row(*row)
    Console(width=140).print(drawn)
    if folder is not None:
        finish(folder)


if __name__ == "__main__":
    main()
