"""What `reft-train` does once its options are read: rows and a model in, an intervention file out."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..errors import TrainingError
from ..file_format import save
from ..model_tree import base_model_spec, fingerprint
from .base_model import load_model
from .checkpoint import checkpoint_path
from .cli_options import BESIDE_THE_OUTPUT, options_from
from .data import Dataset, read_dataset, split_dataset
from .events import EventLog, EventReporter
from .options import TrainingOptions
from .progress import ProgressReporter
from .report import build_report, write_report
from .run_manifest import SetDescription
from .search import SearchSpace, search
from .search_progress import SearchProgress
from .trainer import Trainer


def run(parsed: argparse.Namespace, console: Console, events: EventLog) -> None:
    """Train as the command line says, and write the set.

    Raises:
        ReftError: it can't be done.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    options, output = options_from(parsed), Path(parsed.output)
    _check(parsed, options)
    model, tokenizer, model_id = load_model(parsed.model, parsed.device, parsed.merge_lora)
    if parsed.events is not None:
        events.write("loaded", fingerprint=fingerprint(model))
    data, evaluation = _read(parsed, options, tokenizer)
    _print_data(console, data, evaluation, options.max_length)
    _write_data(events, data, evaluation)
    description = SetDescription(
        name=parsed.name or output.stem,
        description=parsed.description,
        license=parsed.license,
        prompt_template=parsed.prompt_template,
        extra={"recipe": parsed.recipe} if parsed.recipe else {},
    )
    model_id = parsed.model_id or model_id
    found, started_s = None, time.monotonic()
    if parsed.search is None or evaluation is None:
        checkpoint = checkpoint_path(output)
        trainer = Trainer(model, tokenizer, options, data, evaluation, model_id=model_id, checkpoint=checkpoint)
        if parsed.resume:
            trainer.resume()
        with ProgressReporter(console) as reporter:
            result = trainer.run(EventReporter(events, reporter), description)
    else:
        progress = SearchProgress(console, events)
        space = _search_space(parsed, base_model_spec(model, model_id).num_layers)
        found = search(
            model, tokenizer, options, data, evaluation, space, parsed.search,
            model_id=model_id, description=description, on_trial=progress.finished,
        )  # fmt: skip
        progress.show(found)
        result = found.training
    content_hash = save(result.intervention_set, output)
    checkpoint_path(output).unlink(missing_ok=True)
    events.write("finished", content_hash=content_hash, num_bytes=output.stat().st_size)
    console.print(
        f"wrote {output} ({output.stat().st_size:,} bytes, {content_hash}), "
        f"|RᵀR - I| {result.orthonormality_error:.1e}",
        soft_wrap=True,
    )
    if parsed.report is not None:
        folder = output.with_suffix(".report") if parsed.report == BESIDE_THE_OUTPUT else parsed.report
        write_report(folder, build_report(result, data, content_hash, time.monotonic() - started_s, found))
        console.print(f"wrote {folder / 'report.html'}", soft_wrap=True)


def _check(parsed: argparse.Namespace, options: TrainingOptions) -> None:
    output = Path(parsed.output)
    if output.suffix != ".safetensors" or not output.parent.is_dir():
        raise TrainingError(f"--output {output} must end in .safetensors, in a folder that exists", param="output")
    has_held_out = parsed.eval_data is not None or options.eval_fraction > 0
    if parsed.eval_data is not None and options.eval_fraction:
        raise TrainingError("give --eval-data or --eval-fraction, not both", param="eval_data")
    if parsed.search is None:
        return
    if not has_held_out:
        raise TrainingError("--search needs held-out rows: --eval-data or --eval-fraction", param="search")
    if parsed.search < 1 or parsed.resume:
        raise TrainingError("--search takes 1 trial or more, and can't be resumed", param="search")


def _read(
    parsed: argparse.Namespace, options: TrainingOptions, tokenizer: PreTrainedTokenizerBase
) -> tuple[Dataset, Dataset | None]:
    data = read_dataset(parsed.data, tokenizer, options.max_length)
    if parsed.eval_data is not None:
        return data, read_dataset(parsed.eval_data, tokenizer, options.max_length)
    if options.eval_fraction:
        return split_dataset(data, options.eval_fraction, options.seed)
    return data, None


def _search_space(parsed: argparse.Namespace, num_layers: int) -> SearchSpace:
    default = SearchSpace.default(num_layers)
    return SearchSpace(
        tuple(parsed.search_layers or default.layers),
        tuple(parsed.search_ranks or default.ranks),
        tuple(parsed.search_positions or default.positions),
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
