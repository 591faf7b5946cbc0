"""The options of `reft-train`."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..formulas import FORMULAS
from ..user_folders import DEFAULT_MODEL
from .options import INTERCHANGE, RECIPES, TrainingOptions

_OPTION_NAMES = tuple(field.name for field in fields(TrainingOptions))


BESIDE_THE_OUTPUT = Path()
"""What `--report` without a folder stands for."""


def build_parser() -> argparse.ArgumentParser:
    """Every option; those of `TrainingOptions` have no default here, so that a recipe can give one."""
    parser = argparse.ArgumentParser(
        prog="reft-train",
        description="Train a ReFT intervention set on a frozen base model.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    files.add_argument("--model", default=DEFAULT_MODEL, help=f"local folder or hub id; default: {DEFAULT_MODEL}")
    files.add_argument("--merge-lora", type=Path, default=None, help="a LoRA folder to merge into the model first")
    files.add_argument("--data", type=Path, required=True, help="JSON lines: prompt and completion, or messages")
    files.add_argument("--eval-data", type=Path, default=None, help="held-out rows, in the same form")
    files.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    files.add_argument("--resume", action="store_true", default=False, help="continue from the output's checkpoint")
    files.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    files.add_argument(
        "--events", type=Path, default=None, help="append the run's progress to this file, as JSON lines"
    )
    files.add_argument(
        "--report",
        type=Path,
        nargs="?",
        const=BESIDE_THE_OUTPUT,
        default=None,
        help="folder for report.json and report.html; without a value, beside the output",
    )
    manifest = parser.add_argument_group("what the file says of itself")
    manifest.add_argument("--name", default=None, help="default: the output's name without its suffix")
    manifest.add_argument("--model-id", default=None, help="the base model's name; default: that of --model")
    manifest.add_argument("--description", default="", help="one sentence for users")
    manifest.add_argument("--license", default="", help="SPDX id")
    manifest.add_argument("--prompt-template", default=None, help="how to write a prompt, for instance '{word} is'")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default=None, help="the paper's settings for a task")
    parser.add_argument("--options", type=Path, default=None, help="JSON file of options, over the recipe's")
    _add_edit_options(parser.add_argument_group("the edit"))
    _add_optimizer_options(parser.add_argument_group("the training"))
    _add_search_options(parser.add_argument_group("the search"))
    return parser


def _add_search_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--search", type=int, default=None, metavar="TRIALS", help="try so many combinations")
    group.add_argument("--search-layers", nargs="+", default=None, help="choices for --layers, such as 8 '4;8;12' all")
    group.add_argument("--search-ranks", nargs="+", type=int, default=None, help="choices for --low-rank-dimension")
    group.add_argument("--search-positions", nargs="+", default=None, help="choices for --positions")


def _add_edit_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--method", choices=("reft", "das"), help="das: learn the subspace that an interchange swaps")
    group.add_argument("--formula", choices=sorted(FORMULAS.keys() - {INTERCHANGE}), help="default: loreft")
    group.add_argument("--layers", help="'all', or numbers like '3;9;18' or 3,9,18; default: all")
    group.add_argument("--component", help="where in the layer; default: block_output")
    group.add_argument("--heads", help="numbers like 0,2, with a head_* component; each has its own weights")
    group.add_argument("--low-rank-dimension", type=int, help="default: 4")
    group.add_argument("--act", help="linear, relu, gelu, silu, tanh or sigmoid; default: linear")
    group.add_argument("--positions", help="fN, lN, fN+lM, prompt, all, or indices such as =-8,-1; default: f3+l3")
    group.add_argument("--suffix-offset", type=int, help="tokens between the last edited one and the prompt's end")
    group.add_argument("--short-prompt", choices=("paper", "floor"), help="how short prompts are shared out")
    tying = group.add_mutually_exclusive_group()
    tying.add_argument("--tied", dest="is_tied", action="store_true", help="one set of weights for both ends (default)")
    tying.add_argument("--untied", dest="is_tied", action="store_false", help="two sets of weights")
    group.add_argument(
        "--tie-layers", dest="is_tied_across_layers", action="store_true", help="one set of weights for all layers"
    )
    group.add_argument("--subspaces", help="rank dimensions by task, for rows with a subspace: 'task_a=0,1;task_b=2,3'")
    group.add_argument("--start", choices=("base", "random"), help="begin at the base model's output, or at random")


def _add_optimizer_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--epochs", type=int, help="default: 6")
    group.add_argument("--lr", type=float, help="default: 9e-4")
    group.add_argument("--batch-size", type=int, help="default: 16")
    group.add_argument("--gradient-accumulation", type=int, help="default: 1")
    group.add_argument("--warmup-ratio", type=float, help="default: 0.1")
    group.add_argument("--weight-decay", type=float, help="never applied to R; default: 0")
    group.add_argument("--dropout", type=float, help="share of the delta dropped in a training step; default: 0")
    group.add_argument("--max-grad-norm", type=float, help="default: 1")
    group.add_argument("--precision", choices=("float32", "bfloat16"), help="of the frozen matrix products")
    group.add_argument("--prefix-cache-mb", type=int, help="MB to keep unedited prompt states in; default: 2048")
    group.add_argument("--max-length", type=int, help="longer rows are left out and counted; default: 512")
    group.add_argument("--eval-fraction", type=float, help="share of the data to hold out; default: 0")
    group.add_argument("--eval-every", type=int, help="epochs between looks at the held-out rows; 0 = none; default: 1")
    group.add_argument("--patience", type=int, help="stop after this many epochs without a lower held-out loss")
    group.add_argument("--seed", type=int, help="default: 42")
    group.add_argument("--save-every", type=int, help="optimizer steps between checkpoints; default: 0, none")


def options_from(parsed: argparse.Namespace) -> TrainingOptions:
    """The recipe's options, overridden by those in the file, and these by those on the command line.

    Raises:
        TrainingError: an option is out of its range, or the file can't be read.
    """
    chosen: dict[str, Any] = dict(RECIPES[parsed.recipe]) if parsed.recipe else {}
    chosen |= _read_options(parsed.options) if parsed.options else {}
    chosen |= {name: value for name, value in vars(parsed).items() if name in _OPTION_NAMES}
    if getattr(parsed, "method", "reft") == "das":
        if "formula" in vars(parsed):
            raise TrainingError("--method das has a formula of its own; leave out --formula", param="formula")
        chosen["formula"] = INTERCHANGE
    return TrainingOptions(**chosen)


def _read_options(path: Path) -> dict[str, Any]:
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"--options {path} can't be read as JSON", param="options") from error
    if not isinstance(options, dict) or not options.keys() <= set(_OPTION_NAMES):
        raise TrainingError(f"--options {path} must be an object of {', '.join(_OPTION_NAMES)}", param="options")
    return options
