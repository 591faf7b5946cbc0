"""`reft-train`: JSON lines in, an intervention file out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging as transformers_logging

from ..errors import InterventionError, TrainingError
from ..file_format import save
from ..formulas import FORMULAS
from ..model_tree import fingerprint
from ..user_folders import DEFAULT_MODEL
from .base_model import load_model
from .das import INTERCHANGE
from .data import Dataset, read_dataset, split_dataset
from .events import EventLog, EventReporter
from .options import RECIPES, TrainingOptions
from .progress import ProgressReporter
from .run_manifest import SetDescription
from .trainer import Trainer

_OPTION_NAMES = tuple(field.name for field in fields(TrainingOptions))


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and save a set; 0 on success, 1 with one line on stderr when it can't be done."""
    parsed = build_parser().parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    events = EventLog(parsed.events)
    try:
        _run(parsed, Console(highlight=False), events)
    except (TrainingError, InterventionError) as error:
        events.write("failed", code=error.code, message=error.message, param=error.param)
        Console(stderr=True, highlight=False).print(f"reft-train: {error.message}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option; those of `TrainingOptions` have no default here, so that a recipe can give one."""
    parser = argparse.ArgumentParser(
        prog="reft-train",
        description="Train a ReFT intervention set on a frozen base model.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    files = parser.add_argument_group("files")
    files.add_argument("--model", default=DEFAULT_MODEL, help="local folder, hub id, or the default model's name")
    files.add_argument("--data", type=Path, required=True, help="JSON lines: prompt and completion, or messages")
    files.add_argument("--eval-data", type=Path, default=None, help="held-out rows, in the same form")
    files.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    files.add_argument("--resume", action="store_true", default=False, help="continue from the output's checkpoint")
    files.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    files.add_argument(
        "--events", type=Path, default=None, help="append the run's progress to this file, as JSON lines"
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
    return parser


def _add_edit_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--method", choices=("reft", "das"), help="das: learn the subspace that an interchange swaps")
    group.add_argument("--formula", choices=sorted(FORMULAS.keys() - {INTERCHANGE}), help="default: loreft")
    group.add_argument("--layers", help="'all', or numbers like '3;9;18' or 3,9,18; default: all")
    group.add_argument("--component", help="where in the layer; default: block_output")
    group.add_argument("--low-rank-dimension", type=int, help="default: 4")
    group.add_argument("--act", help="linear, relu, gelu, silu, tanh or sigmoid; default: linear")
    group.add_argument("--positions", help="fN, lN, fN+lM, prompt or all; default: f3+l3")
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


def checkpoint_path(output: Path) -> Path:
    """Where the checkpoints of a run with this output lie."""
    return output.with_name(f"{output.stem}.checkpoint.safetensors")


def _run(parsed: argparse.Namespace, console: Console, events: EventLog) -> None:
    options, output = options_from(parsed), Path(parsed.output)
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise TrainingError(f"--output {output} must end in .safetensors, in a folder that exists", param="output")
    if parsed.eval_data is not None and options.eval_fraction:
        raise TrainingError("give --eval-data or --eval-fraction, not both", param="eval_data")
    model, tokenizer, model_id = load_model(parsed.model, parsed.device)
    if parsed.events is not None:
        events.write("loaded", fingerprint=fingerprint(model))
    data, evaluation = read_dataset(parsed.data, tokenizer, options.max_length), None
    if parsed.eval_data is not None:
        evaluation = read_dataset(parsed.eval_data, tokenizer, options.max_length)
    elif options.eval_fraction:
        data, evaluation = split_dataset(data, options.eval_fraction, options.seed)
    _print_data(console, data, evaluation, options.max_length)
    _write_data(events, data, evaluation)
    checkpoint = checkpoint_path(output)
    trainer = Trainer(
        model, tokenizer, options, data, evaluation, model_id=parsed.model_id or model_id, checkpoint=checkpoint
    )
    if parsed.resume:
        trainer.resume()
    description = SetDescription(
        name=parsed.name or output.stem,
        description=parsed.description,
        license=parsed.license,
        prompt_template=parsed.prompt_template,
        extra={"recipe": parsed.recipe} if parsed.recipe else {},
    )
    with ProgressReporter(console) as reporter:
        result = trainer.run(EventReporter(events, reporter), description)
    content_hash = save(result.intervention_set, output)
    checkpoint.unlink(missing_ok=True)
    events.write("finished", content_hash=content_hash, num_bytes=output.stat().st_size)
    console.print(
        f"wrote {output} ({output.stat().st_size:,} bytes, {content_hash}), "
        f"|RᵀR - I| {result.orthonormality_error:.1e}",
        soft_wrap=True,
    )


def _write_data(events: EventLog, data: Dataset, evaluation: Dataset | None) -> None:
    num_held_out, num_too_long = (len(evaluation.examples), evaluation.num_too_long) if evaluation else (0, 0)
    events.write(
        "data",
        num_examples=len(data.examples),
        num_held_out=num_held_out,
        num_too_long=data.num_too_long + num_too_long,
    )


def _print_data(console: Console, data: Dataset, evaluation: Dataset | None, max_length: int) -> None:
    held_out = f", {len(evaluation.examples)} held out" if evaluation else ""
    console.print(f"{len(data.examples)} rows to train on{held_out}")
    num_too_long = data.num_too_long + (evaluation.num_too_long if evaluation else 0)
    if num_too_long:
        console.print(f"left out {num_too_long} rows of more than {max_length} tokens (--max-length)")


if __name__ == "__main__":
    sys.exit(main())
